// CUDA C++ on a CPU. A kernel's text is compiled after this header (precompiled); see README.md.
#pragma once
#include "types.h"
#include "runtime.h"
#include "warp.h"
#include "atomics.h"
#include "intrinsics.h"
#include "export.h"

#define asm static_assert(false, "inline PTX cannot run on the CPU")
#define __asm__ asm
