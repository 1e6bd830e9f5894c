// SPDX-License-Identifier: GPL-2.0-or-later
// Kernels (*_kernel.cpp) are compiled once for each instruction set, into namespaces of their own; which one runs is
// decided at run time.
//
// Kernels include this file, so it must not include the standard library: see simd.h.

#ifndef HIENET_VARIANTS_H
#define HIENET_VARIANTS_H

/// Declare the same names in the namespace of every variant that is compiled.
#ifdef HIENET_X86
#define HIENET_FOR_EACH_VARIANT(...) \
  namespace portable {               \
  __VA_ARGS__                        \
  }                                  \
  namespace avx2 {                   \
  __VA_ARGS__                        \
  }                                  \
  namespace avx512 {                 \
  __VA_ARGS__                        \
  }
#else
#define HIENET_FOR_EACH_VARIANT(...) \
  namespace portable {               \
  __VA_ARGS__                        \
  }
#endif

/// The chosen variant's object of this name.
#ifdef HIENET_X86
#define HIENET_CHOSEN(name) (::hienet::chosen(portable::name, avx2::name, avx512::name))
#else
#define HIENET_CHOSEN(name) (portable::name)
#endif

namespace hienet {

enum class InstructionSet { PORTABLE, AVX2, AVX512 };

/// The one in use: the fastest that the processor can run, unless a test chose another.
InstructionSet instruction_set();

template <typename K> const K &chosen(const K &portable, const K &avx2, const K &avx512)
{
  switch (instruction_set()) {
    case InstructionSet::AVX512:
      return avx512;
    case InstructionSet::AVX2:
      return avx2;
    default:
      return portable;
  }
}

}    // namespace hienet

#endif
