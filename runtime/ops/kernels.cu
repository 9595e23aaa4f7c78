// CUDA kernels of runtime/ops/cupy.py, which owns every launch.
//
// All of them are bound by memory, so that what counts is that the 32 lanes of a warp read and
// write neighbouring addresses. Files are x-fastest, the network's arrays z-fastest: kernels that
// cross from one to the other turn tiles around in shared memory. None adds floats atomically and
// none leaves an order of additions to chance: the same input gives the same bits on every run and
// every device. Compiled by NVRTC, which may have no headers beside it: nothing is included.

constexpr int LANES = 32;  // threads of a warp, side by side along the fastest axis
constexpr int ROWS = 8;    // warps of a block
constexpr int THREADS = LANES * ROWS;
constexpr int MAX_WINDOWS = 64;  // of one launch; they travel by value in its parameters
constexpr int TOGETHER = 4;      // channels or classes whose loads are in flight at a time

// A strided (X, Y, Z) array whose pointer is that of element [0, 0, 0]; strides count elements and
// may be negative.
struct Volume {
    int shape[3];
    long long stride[3];
};

// (n, C, X, Y, Z) with any strides.
struct Batch {
    int shape[5];
    long long stride[5];
};

// A C-order (C, X, Y, Z) array.
struct Channels {
    int shape[4];

    __device__ long long voxels() const {
        return static_cast<long long>(shape[1]) * shape[2] * shape[3];
    }
    // Offset within a channel. In 64 bits: the classes of a large volume pass 2^31 elements.
    __device__ long long at(int x, int y, int z) const {
        return (static_cast<long long>(x) * shape[2] + y) * shape[3] + z;
    }
};

// Windows of one batch, and the box that holds them all.
struct Windows {
    int count;
    int patch[3];
    int low[3];
    int size[3];
    int first[MAX_WINDOWS][3];
};

struct float16 {
    unsigned short bits;
};

__device__ __forceinline__ void store(float* target, float value) { *target = value; }

__device__ __forceinline__ void store(float16* target, float value) {
#ifdef CUDA_SHIM
    target->bits = shim::half_bits(value);
#else
    // What __float2half_rn does, without the header that declares it.
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(target->bits) : "f"(value));
#endif
}

__device__ __forceinline__ bool is_finite(float value) {
    return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// Visits every voxel of a volume whose axes come slowest first: a warp takes a row of the fastest
// axis, and the grid's warps take rows in turn. Indices advance by addition: a division for every
// row would cost more than reading it.
template <typename T, typename Visit>
__device__ __forceinline__ void visit_rows(const T* voxels, const Volume& volume, Visit visit) {
    const int row = blockIdx.x * ROWS + threadIdx.y;
    const int step = gridDim.x * ROWS;
    const int step_i = step / volume.shape[1], step_j = step % volume.shape[1];
    int i = row / volume.shape[1], j = row % volume.shape[1];
    while (i < volume.shape[0]) {
        const T* line = voxels + i * volume.stride[0] + j * volume.stride[1];
#pragma unroll 4
        for (int k = threadIdx.x; k < volume.shape[2]; k += LANES) {
            visit(i, j, k, line[k * volume.stride[2]]);
        }
        i += step_i;
        j += step_j;
        if (j >= volume.shape[1]) {
            j -= volume.shape[1];
            ++i;
        }
    }
}

// Joins the values of a block's threads, always in the same tree; every thread gets the result. The
// scratch is used up: a second call could overwrite what a slow thread has yet to read.
template <typename T, typename Join>
__device__ __forceinline__ T join_block(T value, T* scratch, Join join) {
    const int thread = threadIdx.y * LANES + threadIdx.x;
    scratch[thread] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) scratch[thread] = join(scratch[thread], scratch[thread + half]);
        __syncthreads();
    }
    return scratch[0];
}

// How far the non-zero voxels reach: shape - index towards the low end, index + 1 towards the high
// one. 0 stands for none, so that an array of zeros is the start and a maximum does for both ends.
struct Reach {
    int low[3];
    int high[3];
};

template <typename T>
__device__ __forceinline__ void extent(const T* voxels, const Volume& volume, Reach* reach) {
    __shared__ Reach scratch[THREADS];
    Reach mine = {};
    visit_rows(voxels, volume, [&](int i, int j, int k, T value) {
        if (value != T(0)) {
            const int index[3] = {i, j, k};
#pragma unroll
            for (int axis = 0; axis < 3; ++axis) {
                mine.low[axis] = max(mine.low[axis], volume.shape[axis] - index[axis]);
                mine.high[axis] = max(mine.high[axis], index[axis] + 1);
            }
        }
    });
    const Reach all = join_block(mine, scratch, [](Reach left, const Reach& right) {
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            left.low[axis] = max(left.low[axis], right.low[axis]);
            left.high[axis] = max(left.high[axis], right.high[axis]);
        }
        return left;
    });
    // Six atomics a block, of integers: their order does not matter.
    if (threadIdx.x == 0 && threadIdx.y == 0 && all.high[0] > 0) {
        for (int axis = 0; axis < 3; ++axis) {
            atomicMax(&reach->low[axis], all.low[axis]);
            atomicMax(&reach->high[axis], all.high[axis]);
        }
    }
}

// Both whole numbers below 2^53 where voxels are integers of at most 16 bits: then exact.
struct Moments {
    double count;
    double sum;
};

__device__ __forceinline__ Moments join(const Moments& left, const Moments& right) {
    return {left.count + right.count, __dadd_rn(left.sum, right.sum)};
}

// Every block of the second pass joins the partials of the first, one for each block, for itself: 8
// KB from the L2 cache, which costs less than a launch in between or a trip to the host.
__device__ __forceinline__ Moments join_partials(const Moments* partials, int count,
                                                 Moments* scratch) {
    const int thread = threadIdx.y * LANES + threadIdx.x;
    Moments mine = {0.0, 0.0};
    for (int i = thread; i < count; i += THREADS) mine = join(mine, partials[i]);
    return join_block(mine, scratch, join);
}

__device__ __forceinline__ double mean_of(const Moments& moments) {
    return moments.count > 0.0 ? __ddiv_rn(moments.sum, moments.count) : 0.0;
}

template <typename T>
__device__ __forceinline__ void moments(
    const T* voxels, const Volume& volume, int nonzero_only, Moments* partials) {
    __shared__ Moments scratch[THREADS];
    Moments mine = {0.0, 0.0};
    visit_rows(voxels, volume, [&](int, int, int, T value) {
        if (value != T(0) || !nonzero_only) mine = join(mine, {1.0, static_cast<double>(value)});
    });
    const Moments all = join_block(mine, scratch, join);
    if (threadIdx.x == 0 && threadIdx.y == 0) partials[blockIdx.x] = all;
}

// The sum of squared deviations in a pass of its own: sum(v^2) - sum(v)^2 / n would cancel.
template <typename T>
__device__ __forceinline__ void squares(const T* voxels, const Volume& volume, int nonzero_only,
                                        const Moments* partials, double* squares) {
    __shared__ Moments scratch[THREADS];
    __shared__ double sums[THREADS];
    const double mean = mean_of(join_partials(partials, gridDim.x, scratch));
    double mine = 0.0;
    visit_rows(voxels, volume, [&](int, int, int, T value) {
        if (value != T(0) || !nonzero_only) {
            const double deviation = __dadd_rn(static_cast<double>(value), -mean);
            mine = __dadd_rn(mine, __dmul_rn(deviation, deviation));
        }
    });
    const double all =
        join_block(mine, sums, [](double left, double right) { return __dadd_rn(left, right); });
    if (threadIdx.x == 0 && threadIdx.y == 0) squares[blockIdx.x] = all;
}

// One block a volume: its count, mean and sum of squared deviations, out of `parts` partials.
extern "C" __global__ void __launch_bounds__(THREADS)
    summarise(const Moments* partials, const double* squares, int parts, double* summaries) {
    __shared__ Moments scratch[THREADS];
    __shared__ double sums[THREADS];
    const long long first = static_cast<long long>(blockIdx.x) * parts;
    const int thread = threadIdx.y * LANES + threadIdx.x;
    const Moments all = join_partials(partials + first, parts, scratch);
    double mine = 0.0;
    for (int i = thread; i < parts; i += THREADS) mine = __dadd_rn(mine, squares[first + i]);
    const double deviations =
        join_block(mine, sums, [](double left, double right) { return __dadd_rn(left, right); });
    if (thread == 0) {
        double* summary = summaries + 3 * static_cast<long long>(blockIdx.x);
        summary[0] = all.count;
        summary[1] = mean_of(all);
        summary[2] = deviations;
    }
}

// A tile spans z and the axis `across` (0 or 1); blocks of the grid's z walk along the third axis.
// The side of the strided array is read or written along whichever of the two is its faster axis,
// the C-order side along z. One more column keeps the lanes of a turned access in different banks.
template <typename T>
__device__ __forceinline__ void normalise(const T* voxels, const Volume& source, float* out,
                                          const Volume& target, int across, int z_fastest,
                                          double mean, double std, int nonzero_only) {
    __shared__ float tile[LANES][LANES + 1];
    const int other = 1 - across;
    const int along = blockIdx.z;
    const int a0 = blockIdx.y * LANES, z0 = blockIdx.x * LANES;
#pragma unroll
    for (int step = threadIdx.y; step < LANES; step += ROWS) {
        const int a = z_fastest ? step : threadIdx.x;
        const int z = z_fastest ? threadIdx.x : step;
        // What lies beyond the volume becomes what a voxel of 0 does.
        double value = 0.0;
        if (a0 + a < source.shape[across] && along < source.shape[other] &&
            z0 + z < source.shape[2]) {
            value = static_cast<double>(
                voxels[(a0 + a) * source.stride[across] + along * source.stride[other] +
                       (z0 + z) * source.stride[2]]);
        }
        const bool background = nonzero_only && value == 0.0;
        tile[a][z] = background ? 0.0f : __double2float_rn(__ddiv_rn(value - mean, std));
    }
    __syncthreads();
#pragma unroll
    for (int step = threadIdx.y; step < LANES; step += ROWS) {
        const int a = a0 + step, z = z0 + threadIdx.x;
        if (a < target.shape[across] && z < target.shape[2]) {
            out[a * target.stride[across] + along * target.stride[other] + z] =
                tile[step][threadIdx.x];
        }
    }
}

// One thread per voxel of a window, z fastest: coalesced wherever `out` is z-fastest too. All its
// channels share one calculation of where they are, and their loads are in flight together.
template <typename T>
__device__ __forceinline__ void gather(const float* volume, const Channels& channels,
                                       const Windows& windows, T* out, const Batch& batch) {
    const int window = blockIdx.z, x = blockIdx.y;
    const int plane = blockIdx.x * THREADS + threadIdx.x;
    const int y = plane / batch.shape[4], z = plane % batch.shape[4];
    if (y >= batch.shape[3]) return;
    const int* first = windows.first[window];
    const float* source = volume + channels.at(first[0] + x, first[1] + y, first[2] + z);
    T* target = out + window * batch.stride[0] + x * batch.stride[2] + y * batch.stride[3] +
                z * batch.stride[4];
    for (int base = 0; base < batch.shape[1]; base += TOGETHER) {
        float values[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            if (base + i < batch.shape[1]) values[i] = source[(base + i) * channels.voxels()];
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            if (base + i < batch.shape[1]) store(target + (base + i) * batch.stride[1], values[i]);
        }
    }
}

// For a batch whose channels (at most 8) lie side by side: one thread per voxel reads its value
// from each plane, every read coalesced, and writes them in one store of `wide` bytes (16 or 8; 0
// where size or alignment forbid it). Element stores would touch every sector once per channel.
template <typename T>
__device__ __forceinline__ void gather_last(const float* volume, const Channels& channels,
                                            const Windows& windows, T* out, const Batch& batch,
                                            int wide) {
    constexpr int MAX_CHANNELS = 8;
    const int window = blockIdx.z, x = blockIdx.y;
    const int plane = blockIdx.x * THREADS + threadIdx.x;
    const int y = plane / batch.shape[4], z = plane % batch.shape[4];
    if (y >= batch.shape[3]) return;
    const int* first = windows.first[window];
    const float* source = volume + channels.at(first[0] + x, first[1] + y, first[2] + z);
    union Voxel {
        T values[MAX_CHANNELS];
        uint4 wide16;
        uint2 wide8;
    } voxel;
#pragma unroll
    for (int channel = 0; channel < MAX_CHANNELS; ++channel) {
        if (channel < batch.shape[1]) {
            store(&voxel.values[channel], source[channel * channels.voxels()]);
        }
    }
    T* target = out + window * batch.stride[0] + x * batch.stride[2] + y * batch.stride[3] +
                z * batch.stride[4];
    if (wide == 16) {
        *reinterpret_cast<uint4*>(target) = voxel.wide16;
    } else if (wide == 8) {
        *reinterpret_cast<uint2*>(target) = voxel.wide8;
    } else {
#pragma unroll
        for (int channel = 0; channel < MAX_CHANNELS; ++channel) {
            if (channel < batch.shape[1]) target[channel] = voxel.values[channel];
        }
    }
}

// One thread per voxel of the box that holds the batch's windows: it reads the total once, adds
// every window that covers it, in order, and writes it once. Scattering windows instead would need
// a launch for each, or float atomics, whose order is chance. Product and sum are rounded one by
// one, as NumPy does it; a fused multiply-add would not give the same bits.
extern "C" __global__ void __launch_bounds__(THREADS)
    accumulate(float* total, const __grid_constant__ Channels channels, const float* values,
               const float* importance, const __grid_constant__ Windows windows,
               unsigned long long* non_finite) {
    const int offset_y = blockIdx.y * ROWS + threadIdx.y;
    const int offset_z = blockIdx.x * LANES + threadIdx.x;
    if (offset_y >= windows.size[1] || offset_z >= windows.size[2]) return;
    const int x = windows.low[0] + blockIdx.z;
    const int y = windows.low[1] + offset_y;
    const int z = windows.low[2] + offset_z;
    const long long patch_voxels =
        static_cast<long long>(windows.patch[0]) * windows.patch[1] * windows.patch[2];
    const int classes = channels.shape[0];
    unsigned long long bad = 0;
    for (int base = 0; base < classes; base += TOGETHER) {
        float* target = total + base * channels.voxels() + channels.at(x, y, z);
        float sums[TOGETHER] = {};
        bool covered = false;
        for (int window = 0; window < windows.count; ++window) {
            const int dx = x - windows.first[window][0];
            const int dy = y - windows.first[window][1];
            const int dz = z - windows.first[window][2];
            if (dx < 0 || dx >= windows.patch[0] || dy < 0 || dy >= windows.patch[1] || dz < 0 ||
                dz >= windows.patch[2]) {
                continue;
            }
            const long long inside =
                (static_cast<long long>(dx) * windows.patch[1] + dy) * windows.patch[2] + dz;
            const float weight = importance[inside];
            const float* value =
                values + (static_cast<long long>(window) * classes + base) * patch_voxels + inside;
#pragma unroll
            for (int k = 0; k < TOGETHER; ++k) {
                if (base + k < classes) {
                    const float probability = value[k * patch_voxels];
                    if (!covered) sums[k] = target[k * channels.voxels()];
                    if (!is_finite(probability)) ++bad;
                    sums[k] = __fadd_rn(sums[k], __fmul_rn(probability, weight));
                }
            }
            covered = true;
        }
        if (!covered) return;  // by no window, whatever the class
#pragma unroll
        for (int k = 0; k < TOGETHER; ++k) {
            if (base + k < classes) target[k * channels.voxels()] = sums[k];
        }
    }
    if (bad > 0) atomicAdd(non_finite, bad);
}

// Tiles as in `normalise`, the other way round: totals are read along z, labels written along the
// faster axis of the file's grid.
extern "C" __global__ void __launch_bounds__(THREADS)
    argmax(const float* total, const __grid_constant__ Channels channels, unsigned char* out,
           const __grid_constant__ Volume target, int across, int z_fastest) {
    __shared__ unsigned char tile[LANES][LANES + 1];
    const int other = 1 - across;
    const int along = blockIdx.z;
    const int a0 = blockIdx.y * LANES, z0 = blockIdx.x * LANES;
#pragma unroll
    for (int step = threadIdx.y; step < LANES; step += ROWS) {
        const int a = a0 + step, z = z0 + threadIdx.x;
        if (a < target.shape[across] && z < target.shape[2]) {
            const float* values =
                total + channels.at(across == 0 ? a : along, across == 0 ? along : a, z);
            float best = values[0];
            unsigned char label = 0;
#pragma unroll 3
            for (int k = 1; k < channels.shape[0]; ++k) {
                const float value = values[k * channels.voxels()];
                if (value > best) label = static_cast<unsigned char>(k);
                // As numpy.maximum: once NaN, always NaN, and nothing is larger than that.
                if (value > best || value != value) best = value;
            }
            tile[step][threadIdx.x] = label;
        }
    }
    __syncthreads();
#pragma unroll
    for (int step = threadIdx.y; step < LANES; step += ROWS) {
        const int a = z_fastest ? step : threadIdx.x;
        const int z = z_fastest ? threadIdx.x : step;
        if (a0 + a < target.shape[across] && z0 + z < target.shape[2]) {
            out[(a0 + a) * target.stride[across] + along * target.stride[other] +
                (z0 + z) * target.stride[2]] = tile[a][z];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    divide(float* total, const float* weight, int classes, long long voxels) {
    const long long step = static_cast<long long>(gridDim.x) * THREADS;
    for (long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; i < voxels;
         i += step) {
        const float divisor = weight[i];
        for (int k = 0; k < classes; ++k) {
            total[k * voxels + i] = __fdiv_rn(total[k * voxels + i], divisor);
        }
    }
}

#define OF_STORED_VOXELS(NAME, TYPE)                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS) extent_##NAME(                         \
        const TYPE* voxels, const __grid_constant__ Volume volume, Reach* reach) {               \
        extent(voxels, volume, reach);                                                           \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) moments_##NAME(                        \
        const TYPE* voxels, const __grid_constant__ Volume volume, int nonzero_only,             \
        Moments* partials) {                                                                     \
        moments(voxels, volume, nonzero_only, partials);                                         \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) squares_##NAME(                        \
        const TYPE* voxels, const __grid_constant__ Volume volume, int nonzero_only,             \
        const Moments* partials, double* sums) {                                                 \
        squares(voxels, volume, nonzero_only, partials, sums);                                   \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) normalise_##NAME(                      \
        const TYPE* voxels, const __grid_constant__ Volume source, float* out,                   \
        const __grid_constant__ Volume target, int across, int z_fastest, double mean,           \
        double std, int nonzero_only) {                                                          \
        normalise(voxels, source, out, target, across, z_fastest, mean, std, nonzero_only);      \
    }

OF_STORED_VOXELS(int8, signed char)
OF_STORED_VOXELS(uint8, unsigned char)
OF_STORED_VOXELS(int16, short)
OF_STORED_VOXELS(uint16, unsigned short)
OF_STORED_VOXELS(int32, int)
OF_STORED_VOXELS(uint32, unsigned int)
OF_STORED_VOXELS(int64, long long)
OF_STORED_VOXELS(uint64, unsigned long long)
OF_STORED_VOXELS(float32, float)
OF_STORED_VOXELS(float64, double)

#define OF_BATCHES(NAME, TYPE)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) gather_##NAME(                         \
        const float* volume, const __grid_constant__ Channels channels,                          \
        const __grid_constant__ Windows windows, TYPE* out,                                      \
        const __grid_constant__ Batch batch) {                                                   \
        gather(volume, channels, windows, out, batch);                                           \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) gather_last_##NAME(                    \
        const float* volume, const __grid_constant__ Channels channels,                          \
        const __grid_constant__ Windows windows, TYPE* out, const __grid_constant__ Batch batch, \
        int wide) {                                                                              \
        gather_last(volume, channels, windows, out, batch, wide);                                \
    }

OF_BATCHES(float32, float)
OF_BATCHES(float16, float16)
