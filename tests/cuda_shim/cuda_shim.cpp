// The part of cuda_shim.h that runs a grid; compiled together with the kernels.
uint3 threadIdx, blockIdx, blockDim, gridDim;

// The linker's names for the section that __shared__ puts variables into; null where nothing is.
extern char __start_cuda_shared[] __attribute__((weak));
extern char __stop_cuda_shared[] __attribute__((weak));

namespace {

constexpr std::size_t STACK = 64 * 1024;
enum class State { ready, at_barrier, done };

struct Fiber {
    std::vector<char> stack = std::vector<char>(STACK);
    ucontext_t entry;
    jmp_buf resume;
    bool started = false;
    State state = State::ready;
    uint3 index;
};

std::deque<Fiber> fibers;  // never moved: they are on their own stacks
jmp_buf scheduler;
Fiber* current = nullptr;
const std::function<void()>* body = nullptr;
std::string message;

// A fiber lives on from block to block: making one costs more than most kernels' threads do.
void enter() {
    while (true) {
        (*body)();
        current->state = State::done;
        if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
    }
}

// setcontext once per fiber; from then on _setjmp and _longjmp, which leave the signal mask, and
// the kernel of the operating system, alone.
void turn(Fiber& fiber) {
    current = &fiber;
    threadIdx = fiber.index;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = fiber.stack.data();
    fiber.entry.uc_stack.ss_size = fiber.stack.size();
    fiber.entry.uc_link = nullptr;
    makecontext(&fiber.entry, enter, 0);
    setcontext(&fiber.entry);
}

// A crash of a kernel becomes an exception: memory that is not there (SIGSEGV, SIGBUS), or, where
// the compiler's checks of undefined behaviour trap (SIGILL), an overflow, a misaligned access or
// an index beyond an array of known size.
class Crashes {
public:
    static inline sigjmp_buf back;

    Crashes() {
        struct sigaction action = {};
        action.sa_handler = [](int signal) { siglongjmp(back, signal); };
        for (std::size_t i = 0; i < std::size(signals); ++i) {
            sigaction(signals[i], &action, &before[i]);
        }
    }
    ~Crashes() {
        for (std::size_t i = 0; i < std::size(signals); ++i) {
            sigaction(signals[i], &before[i], nullptr);
        }
    }

private:
    static constexpr int signals[] = {SIGILL, SIGSEGV, SIGBUS};
    struct sigaction before[std::size(signals)];
};

struct Turns {
    int order;
    std::mt19937 random;

    std::vector<unsigned> of(unsigned count) {
        std::vector<unsigned> turns(count);
        std::iota(turns.begin(), turns.end(), 0u);
        if (order == 1) std::reverse(turns.begin(), turns.end());
        if (order == 2) std::shuffle(turns.begin(), turns.end(), random);
        return turns;
    }
};

void run_block(unsigned threads, Turns& turns) {
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.state = State::ready;
        fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    }
    // NaN, where it is read as a float: whatever the last block left there is gone.
    std::fill(__start_cuda_shared, __stop_cuda_shared, '\xff');
    while (true) {
        unsigned waiting = 0;
        for (unsigned i : turns.of(threads)) {
            turn(fibers[i]);
            if (fibers[i].state == State::at_barrier) ++waiting;
        }
        if (waiting == 0) return;
        if (waiting < threads) {
            fibers.clear();  // those that wait are in the middle of a kernel
            throw std::runtime_error(std::to_string(waiting) + " of " + std::to_string(threads) +
                                     " threads wait at a barrier that the others never reach");
        }
        for (unsigned i = 0; i < threads; ++i) fibers[i].state = State::ready;
    }
}

}  // namespace

void __syncthreads() {
    current->state = State::at_barrier;
    if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

void shim::run(const unsigned* grid, const unsigned* block, int order, unsigned seed,
               const std::function<void()>& kernel) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    body = &kernel;
    const unsigned threads = block[0] * block[1] * block[2];
    if (fibers.size() < threads) fibers.resize(threads);
    Turns turns{order, std::mt19937(seed)};
    const Crashes crashes;
    if (const int signal = sigsetjmp(Crashes::back, 1)) {
        fibers.clear();
        throw std::runtime_error(
            "block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + "," +
            std::to_string(blockIdx.z) + ", thread " + std::to_string(threadIdx.x) + "," +
            std::to_string(threadIdx.y) + "," + std::to_string(threadIdx.z) +
            " did what a device does not survive: " + strsignal(signal));
    }
    for (unsigned i : turns.of(grid[0] * grid[1] * grid[2])) {
        blockIdx = {i % grid[0], i / grid[0] % grid[1], i / grid[0] / grid[1]};
        run_block(threads, turns);
    }
}

extern "C" const char* shim_message() { return message.c_str(); }
