#include "isa.h"

#define MSERVE_ISA plain
#include "kernels.h"
