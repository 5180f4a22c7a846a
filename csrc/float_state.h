// Default rounding and kept denormals for a scope: torch.set_flush_denormal and others change the thread's state.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace baize {

#if defined(__x86_64__)
class DefaultFloatState {
   public:
    DefaultFloatState() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }  // nearest even, nothing flushed, all masked
    ~DefaultFloatState() { _mm_setcsr(saved_); }
    DefaultFloatState(const DefaultFloatState&) = delete;
    DefaultFloatState& operator=(const DefaultFloatState&) = delete;

   private:
    unsigned saved_;
};
#else
struct DefaultFloatState {
    DefaultFloatState() {}  // elsewhere nobody is known to change it
};
#endif

}  // namespace baize
