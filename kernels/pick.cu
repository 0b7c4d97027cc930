// One element of every row by its number, times a factor: what negative log-likelihood reads.
//
// One element per thread and turn, any number of blocks. Compiled with ELEMENT, the type of elements,
// INDEX, that of indices, COUNT, which holds the number of elements, and FACTORS: 1 if there is a
// factor for each element, 0 if it is a number. Indices may not be negative.
#define INDICES 1
#include "index.cuh"

typedef ELEMENT Element;

#if FACTORS
#define FACTOR widen(factors[element])
#define FACTOR_PARAMETER const Element* __restrict__ factors
#else
#define FACTOR (Compute<Element>)number
#define FACTOR_PARAMETER double number
#endif

// out[e] = x[place of e] * factor
extern "C" __global__ void __launch_bounds__(256)
    pick(const Element* __restrict__ x, Element* __restrict__ out, FACTOR_PARAMETER, const Places p,
         long long count, INDEX_PARAMETERS) {
  FINDER;
  FOR_EACH(element, count) {
    const long long at = finder.place(p, element);
    out[element] = narrow<Element>(at == NOWHERE ? Compute<Element>(0) : widen(x[at]) * FACTOR);
  }
}

// out[place of e] = g[e * step] * factor; `out` holds zeros, and no place repeats
extern "C" __global__ void __launch_bounds__(256)
    unpick(const Element* __restrict__ g, Element* __restrict__ out, FACTOR_PARAMETER, const Places p,
           long long count, INDEX_PARAMETERS) {
  FINDER;
  FOR_EACH(element, count) {
    long long other;
    const long long at = finder.place(p, element, &other);
    if (at != NOWHERE) out[at] = narrow<Element>(widen(g[other]) * FACTOR);
  }
}
