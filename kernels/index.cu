// Reading and writing by index arrays: one element per thread and turn, any number of blocks.
//
// Compiled with WORD, an unsigned type of an element's size (values are only moved), INDEX, the type
// of the indices, INDICES, how many index arrays there are, and COUNT, which holds the number of
// elements.
#include "index.cuh"

typedef WORD Word;

// out[p, c] = x[index[p], c] of a table of `rows` contiguous rows of `words` words Word: an embedding.
// Rows of bad indices are zeros. Neighbouring threads take neighbouring words of a row.
extern "C" __global__ void __launch_bounds__(256, 1)
    take_rows(const Word* __restrict__ x, const Index* __restrict__ index, Word* __restrict__ out,
              long long count, long long words, long long rows, ErrorRecord* record,
              long long site, long long strict) {
  FOR_EACH(element, count * words) {
    const Count p = element / (Count)words, c = element - p * (Count)words;
    const long long given = (long long)index[p];
    const long long row = given < 0 && !strict ? given + rows : given;
    if ((unsigned long long)row < (unsigned long long)rows) {
      out[element] = x[row * words + c];
    } else {
      report_error(record, site, given, rows);
      out[element] = Word{};
    }
  }
}

// out[e] = x[place of e], 0 where there is none.
extern "C" __global__ void __launch_bounds__(256, 1)
    gather(const Word* __restrict__ x, Word* __restrict__ out, const Places p, long long count,
           INDEX_PARAMETERS) {
  FINDER;
  FOR_EACH(element, count) {
    const long long at = finder.place(p, element);
    out[element] = at == NOWHERE ? Word{} : x[at];
  }
}

// x[place of e] = value[e]; places do not repeat.
extern "C" __global__ void __launch_bounds__(256, 1)
    scatter(Word* __restrict__ x, const Word* __restrict__ value, const Places p, long long count,
            INDEX_PARAMETERS) {
  FINDER;
  FOR_EACH(element, count) {
    long long other;
    const long long at = finder.place(p, element, &other);
    if (at != NOWHERE) x[at] = value[other];
  }
}

// key[e] = place of e; `none` where there is none or the place is `dropped`.
extern "C" __global__ void __launch_bounds__(256, 1)
    keys(unsigned* __restrict__ key, const Places p, long long count, long long none,
         long long dropped, INDEX_PARAMETERS) {
  FINDER;
  FOR_EACH(element, count) {
    const long long at = finder.place(p, element);
    key[element] = (unsigned)(at == NOWHERE || at == dropped ? none : at);
  }
}

// last[place of e] = the greatest e of this place: the one that is written last. The maximum is the
// same in whatever order the atomics come.
extern "C" __global__ void __launch_bounds__(256, 1)
    mark_last(int* __restrict__ last, const Places p, long long count, INDEX_PARAMETERS) {
  FINDER;
  FOR_EACH(element, count) {
    const long long at = finder.place(p, element);
    if (at != NOWHERE) atomicMax(&last[at], (int)element);
  }
}

// x[place of e] = value[e] for the last of those elements that share a place. `marks` gives the
// place of a position, `width` elements belong to a position.
extern "C" __global__ void __launch_bounds__(256, 1)
    put(Word* __restrict__ x, const Word* __restrict__ value, const int* __restrict__ last,
        const Places p, const Places marks, long long count, long long width, INDEX_PARAMETERS) {
  FINDER;
  FOR_EACH(element, count) {
    const Count position = element / (Count)width;
    const long long mark = finder.place(marks, position);
    if (mark == NOWHERE || last[mark] != (int)position) continue;
    long long other;
    const long long at = finder.place(p, element, &other);
    x[at] = value[other];
  }
}

// Report what is not in [0, bound).
extern "C" __global__ void __launch_bounds__(256, 1)
    check_range(const Index* __restrict__ index, long long count, long long bound,
                ErrorRecord* record, long long site) {
  FOR_EACH(element, count) checked_label(index[element], bound, record, site);
}
