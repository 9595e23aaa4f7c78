// Enough of CUDA C++ for g++ to compile kernels.cu and run its kernels on the host.
//
// Included ahead of the kernels (-include). The threads of a block are fibers on stacks of their
// own: __syncthreads() suspends one until all others are there too, so that shared memory works as
// on a device. The order in which blocks, and between two barriers threads, take their turns is
// the caller's choice: what depends on it is a race. One host thread only.
#pragma once
#define CUDA_SHIM 1

#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)
// In a section of its own, so that every block can be given garbage in its shared memory.
#define __shared__ __attribute__((section("cuda_shared"))) static

struct uint3 {
    unsigned x, y, z;
};
struct uint2 {
    unsigned x, y;
} __attribute__((aligned(8)));
struct uint4 {
    unsigned x, y, z, w;
} __attribute__((aligned(16)));

extern uint3 threadIdx, blockIdx, blockDim, gridDim;
__attribute__((noinline)) void __syncthreads();

using std::max;
using std::min;

inline int atomicMax(int* address, int value) {
    const int old = *address;
    *address = std::max(old, value);
    return old;
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
    const unsigned long long old = *address;
    *address = old + value;
    return old;
}

// Compiled with -ffp-contract=off, so that each is rounded by itself.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __double2float_rn(double value) { return static_cast<float>(value); }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

namespace shim {

// The nearest float16, ties to even; overflow is infinite, NaN stays NaN.
inline unsigned short half_bits(float value) {
    const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value)) return sign | 0x7e00;
    const double size = std::fabs(static_cast<double>(value));
    if (size >= 65520.0) return sign | 0x7c00;
    // In units of the last place, which is 2^-24 for subnormal numbers, 2^(e - 10) for others;
    // nearbyint rounds ties to even.
    const int exponent = size < 0x1p-14 ? -14 : std::ilogb(size);
    const int ulps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    // A normal number has 1024 ulps in its leading bit; a carry moves into the exponent by itself.
    return static_cast<unsigned short>(sign | (((exponent + 14) << 10) + ulps));
}

void run(const unsigned* grid, const unsigned* block, int order, unsigned seed,
         const std::function<void()>& kernel);

}  // namespace shim
