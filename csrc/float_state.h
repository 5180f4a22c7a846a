// Sets default rounding and kept denormals for a scope, because torch.set_flush_denormal and others change
// the thread's state.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace baize {

class DefaultFloatState {
   public:
    DefaultFloatState() : saved_(get()) { set(kDefault); }
    ~DefaultFloatState() { set(saved_); }
    DefaultFloatState(const DefaultFloatState&) = delete;
    DefaultFloatState& operator=(const DefaultFloatState&) = delete;

   private:
#if defined(__x86_64__)
    // MXCSR: nearest even, denormals kept, all exceptions masked.
    static constexpr uint64_t kDefault = 0x1f80;
    static uint64_t get() { return _mm_getcsr(); }
    static void set(uint64_t state) { _mm_setcsr(unsigned(state)); }
#elif defined(__aarch64__)
    static constexpr uint64_t kDefault = 0;  // FPCR: the same
    static uint64_t get() {
        uint64_t state;
        __asm__ volatile("mrs %0, fpcr" : "=r"(state));
        return state;
    }
    static void set(uint64_t state) { __asm__ volatile("msr fpcr, %0" : : "r"(state) : "memory"); }
#else
    static constexpr uint64_t kDefault = 0;  // other processors: the caller's state is left as it is
    static uint64_t get() { return kDefault; }
    static void set(uint64_t) {}
#endif

    uint64_t saved_;
};

}  // namespace baize
