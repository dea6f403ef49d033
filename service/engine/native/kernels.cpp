// The packed encoder's kernels for CPUs, as a library of C functions that service/engine/native/library.py
// calls. All numbers are float32; matrices are row-major, with their rows' distance in numbers.
//
// Every number of a result is one sum over the inner dimension, from its first term to its last,
// whatever the number of rows and of threads. So a row's numbers do not depend, to the bit, on the
// rows beside it.
//
// The vectors are those of GCC and Clang, so one source serves every processor. The build (setup.py)
// compiles it once for each kind of processor, and library.py loads the one that fits.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#include <pthread.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// W numbers in a vector. A tile of a product has up to MR rows and NR = 2 W columns: its sums fill the
// registers, but for the few that the operands need.
#if defined(__AVX512F__)
constexpr int W = 16, MR = 8;
#elif defined(__AVX2__)
constexpr int W = 8, MR = 6;
#else
constexpr int W = 4, MR = 6;
#endif
constexpr int NR = 2 * W;

typedef float vec __attribute__((vector_size(W * 4)));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
typedef float uvec __attribute__((vector_size(W * 4), aligned(4), may_alias));

inline vec load(const float* p) { return *reinterpret_cast<const uvec*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<uvec*>(p) = v; }
inline vec all(float x) { return x - vec{}; }
inline vec least(vec a, vec b) { return a < b ? a : b; }
inline vec most(vec a, vec b) { return a > b ? a : b; }

inline float sum(vec v) {
  float total = 0;
  for (int i = 0; i < W; i++) total += v[i];
  return total;
}

// ---- threads

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads that share the pieces of one job at a time. Who is free takes the next piece, so a thread
// that lost its core to another process holds up no more than the piece it has. A thread that finds
// no work looks for some tens of microseconds, which is longer than the gap between two jobs of a
// batch, and then sleeps.
class Pool {
 public:
  template <class F>
  void run(int64_t pieces, int threads, const F& piece) {
    if (threads <= 1 || pieces <= 1) {
      for (int64_t i = 0; i < pieces; i++) piece(i);
      return;
    }
    std::lock_guard<std::mutex> one_job(jobs_);
    grow(threads - 1);
    // No thread can take a piece while the job changes: the closed ticket is at no piece's number.
    ticket_.store(uint64_t{++epoch_} << 32 | CLOSED);
    job_.store([](const void* f, int64_t i) { (*static_cast<const F*>(f))(i); });
    argument_.store(&piece);
    pieces_.store(pieces);
    left_.store(pieces);
    helpers_.store(threads - 1);
    ticket_.store(uint64_t{++epoch_} << 32);
    call_.fetch_add(1);
    if (sleeping_.load() > 0) call_.notify_all();
    work(epoch_);
    for (int looks = 0; left_.load() > 0; looks++) {
      if (looks < LOOKS) {
        pause();
      } else {
        int64_t left = left_.load();
        if (left > 0) left_.wait(left);
      }
    }
  }

 private:
  static constexpr uint64_t CLOSED = 0xffffffff;
  static constexpr int LOOKS = 1000;

  void grow(int workers) {
    for (; workers_ < workers; workers_++) {
      try {
        // they live as long as the process
        std::thread([this, number = workers_] { wait_and_work(number); }).detach();
      } catch (const std::system_error&) {
        return;  // no more threads to be had: those that there are take all pieces
      }
    }
  }

  void wait_and_work(int number) {
    uint32_t seen = call_.load() - 1;  // it may have been started for a job
    for (;;) {
      for (int looks = 0; call_.load() == seen; looks++) {
        if (looks < LOOKS) {
          pause();
        } else {
          sleeping_.fetch_add(1);
          call_.wait(seen);
          sleeping_.fetch_sub(1);
        }
      }
      seen = call_.load();
      if (number < helpers_.load()) work(static_cast<uint32_t>(ticket_.load() >> 32));
    }
  }

  // Take pieces of that job until there are none.
  void work(uint32_t epoch) {
    for (;;) {
      uint64_t ticket = ticket_.load();
      int64_t i = ticket & 0xffffffff;
      if (ticket >> 32 != epoch || i >= pieces_.load()) return;
      auto job = job_.load();
      auto argument = argument_.load();
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
      job(argument, i);
      if (left_.fetch_sub(1) == 1) left_.notify_all();
    }
  }

  std::mutex jobs_;
  int workers_ = 0;
  uint32_t epoch_ = 0;  // it goes round: no thread is late by billions of jobs
  std::atomic<uint64_t> ticket_{CLOSED};  // the job's number, and that of its next piece
  std::atomic<void (*)(const void*, int64_t)> job_{nullptr};
  std::atomic<const void*> argument_{nullptr};
  std::atomic<int64_t> pieces_{0}, left_{0};
  std::atomic<int> helpers_{0}, sleeping_{0};
  std::atomic<uint32_t> call_{0};
};

std::atomic<Pool*> shared_pool{nullptr};

// A process that was forked has none of its parent's threads: it gets a pool of its own. None is ever
// taken down, for a thread may still look at it while the process ends.
Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { shared_pool.store(nullptr); });
  static_cast<void>(registered);
  Pool* found = shared_pool.load();
  if (!found) {
    Pool* made = new Pool;
    if (shared_pool.compare_exchange_strong(found, made)) return *made;
    delete made;
  }
  return *found;
}

// Memory of a thread, which it keeps.
float* scratch(int which, size_t numbers) {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<float, Free> held[4];
  thread_local size_t sizes[4] = {};
  if (sizes[which] < numbers) {
    size_t bytes = (numbers * 4 + 63) / 64 * 64;
    sizes[which] = 0;
    held[which].reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!held[which]) std::abort();  // some megabytes at most: there is no going on without them
    sizes[which] = numbers;
  }
  return held[which].get();
}

// ---- functions of numbers

// erf as a quotient of polynomials on [-3.74, 3.74], as XLA computes it (ErfImpl32 of
// xla/hlo/builder/lib/math.cc); beyond, a float32's erf is 1 but for its last bits. It has to be 1 to
// the bit: GELU multiplies what is lacking with numbers of any size.
inline vec erf(vec x) {
  const vec end = all(3.7439211627767994f);
  x = most(least(x, end), -end);
  vec s = x * x;
  vec p = all(0.00022905065861350646f);
  p = p * s + 0.0034082910107109506f;
  p = p * s + 0.050955695062380861f;
  p = p * s + 0.18520832239976145f;
  p = p * s + 1.128379143519084f;
  vec q = all(-1.1791602954361697e-7f);
  q = q * s + 0.000023547966471313185f;
  q = q * s + 0.0010179625278914885f;
  q = q * s + 0.014070470171167667f;
  q = q * s + 0.11098505178285362f;
  q = q * s + 0.49746925110067538f;
  q = q * s + 1.0f;
  vec inside = x > -end ? x * p / q : all(-1.0f);
  return x < end ? inside : all(1.0f);
}

inline vec gelu(vec x) { return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f)); }

// exp by Cephes' expf.c: 2^n times a polynomial of the rest, for x <= 0. NaN stays NaN.
inline vec exp(vec x) {
  x = most(all(-87.0f), x);
  vec n = x * 1.44269504088896341f + 12582912.0f;  // rounds to a whole number
  vec whole = n - 12582912.0f;
  vec r = x - whole * 0.693359375f - whole * -2.12194440e-4f;
  vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  ivec power = (ivec(n) << 23) + (127 << 23);
  return p * vec(power);
}

enum Activation : int { NONE = 0, GELU = 1, RELU = 2 };

inline vec activated(vec v, int activation) {
  if (activation == GELU) return gelu(v);
  if (activation == RELU) return v < vec{} ? vec{} : v;
  return v;
}

// ---- products

// acc[m] += sum over k of a[m, k] * b[k, 0:NR]. With AHEAD, what lies from `ahead` on is fetched into
// the cache meanwhile, `pace` numbers for each k.
template <int M, bool AHEAD>
inline void multiply(int64_t k, const float* a, int64_t lda, const float* b, const float* ahead,
                     int64_t pace, vec (&acc)[MR][2]) {
  for (int64_t i = 0; i < k; i++, b += NR, a++) {
    vec b0 = *reinterpret_cast<const vec*>(b), b1 = *reinterpret_cast<const vec*>(b + W);
    if constexpr (AHEAD) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += pace;
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      vec x = all(a[m * lda]);
      acc[m][0] += x * b0;
      acc[m][1] += x * b1;
    }
  }
}

// run(M) with a constant M of 1 to MR.
template <class Run>
inline void with_height(int64_t m, const Run& run) {
  switch (m) {
    case 1: return run(std::integral_constant<int, 1>{});
    case 2: return run(std::integral_constant<int, 2>{});
    case 3: return run(std::integral_constant<int, 3>{});
    case 4: return run(std::integral_constant<int, 4>{});
    case 5: return run(std::integral_constant<int, 5>{});
    case 6: return run(std::integral_constant<int, 6>{});
#if defined(__AVX512F__)
    case 7: return run(std::integral_constant<int, 7>{});
    case 8: return run(std::integral_constant<int, 8>{});
#endif
  }
}

// One tile of `rows` <= MR rows: `begin(m, acc[m])` sets its sums, `end(m, acc[m])` takes them. With a
// pace, numbers from `ahead` on are fetched.
template <class Begin, class End>
inline void tile(int64_t rows, int64_t k, const float* a, int64_t lda, const float* b, const Begin& begin,
                 const End& end, const float* ahead = nullptr, int64_t pace = 0) {
  vec acc[MR][2];
  for (int m = 0; m < rows; m++) begin(m, acc[m]);
  auto run = [&](auto height) {
    constexpr int M = decltype(height)::value;
    if (pace > 0) {
      multiply<M, true>(k, a, lda, b, ahead, pace, acc);
    } else {
      multiply<M, false>(k, a, lda, b, nullptr, 0, acc);
    }
  };
  with_height(rows, run);
  for (int m = 0; m < rows; m++) end(m, acc[m]);
}

// Tiles of even heights: a low one is slow.
inline int64_t tile_height(int64_t rows) {
  int64_t tiles = (rows + MR - 1) / MR;
  return tiles > 0 ? (rows + tiles - 1) / tiles : MR;
}

void store_columns(float* to, const vec* v, int64_t columns) {
  if (columns >= NR) {
    store(to, v[0]);
    store(to + W, v[1]);
  } else {
    std::memcpy(to, v, columns * sizeof(float));
  }
}

void load_columns(const float* from, vec* v, int64_t columns) {
  if (columns >= NR) {
    v[0] = load(from);
    v[1] = load(from + W);
  } else {
    v[0] = v[1] = vec{};
    std::memcpy(v, from, columns * sizeof(float));
  }
}

inline int64_t panels_of(int64_t columns) { return (columns + NR - 1) / NR; }

constexpr int B = 8;  // blocks of B x B numbers are transposed at once

// out[i, j] = x[j, i] for i < B and j < `rows`, and 0 for j from there to B. out's rows are NR apart.
inline void transpose_block(const float* x, int64_t ldx, int64_t rows, float* out) {
#if defined(__AVX2__)
  __m256 r[B], t[B];
  for (int j = 0; j < B; j++) r[j] = j < rows ? _mm256_loadu_ps(x + j * ldx) : _mm256_setzero_ps();
  for (int j = 0; j < B; j += 2) {
    t[j] = _mm256_unpacklo_ps(r[j], r[j + 1]), t[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
  }
  for (int j = 0; j < B; j += 4) {
    r[j] = _mm256_shuffle_ps(t[j], t[j + 2], 0x44), r[j + 1] = _mm256_shuffle_ps(t[j], t[j + 2], 0xee);
    r[j + 2] = _mm256_shuffle_ps(t[j + 1], t[j + 3], 0x44);
    r[j + 3] = _mm256_shuffle_ps(t[j + 1], t[j + 3], 0xee);
  }
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps(out + i * NR, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * NR, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
#else
  for (int i = 0; i < B; i++) {
    for (int j = 0; j < B; j++) out[i * NR + j] = j < rows ? x[j * ldx + i] : 0.0f;
  }
#endif
}

// `x` transposed into a panel: out[i, j] = x[j, i] for j < `rows`, and 0 up to NR.
void to_panel(const float* x, int64_t ldx, int64_t rows, int64_t columns, float* out) {
  int64_t whole = columns / B * B;
  for (int64_t j = 0; j < NR; j += B) {
    int64_t valid = std::clamp<int64_t>(rows - j, 0, B);
    for (int64_t i = 0; i < whole; i += B) {
      transpose_block(x + j * ldx + i, ldx, valid, out + i * NR + j);
    }
    for (int64_t i = whole; i < columns; i++) {
      for (int64_t m = 0; m < B; m++) out[i * NR + j + m] = m < valid ? x[(j + m) * ldx + i] : 0.0f;
    }
  }
}

// A linear layer's weights: for each panel of NR outputs NR biases, and then [inputs, NR].
inline int64_t panel_numbers(int64_t inputs) { return (inputs + 1) * NR; }

// Rows that a thread takes at once: with them a block of inputs stays in its second cache. Inputs are
// taken in blocks whose panel fits its first.
constexpr int64_t ROWS = 96, INPUTS = 384, FETCHING = 16;

void linear_piece(const float* x, int64_t ldx, int64_t rows, int64_t inputs, const float* packed,
                  int64_t first, int64_t last, int64_t outputs, float* out, int64_t ldo,
                  int activation) {
  int64_t blocks = (inputs + INPUTS - 1) / INPUTS;
  int64_t block = ((inputs + blocks - 1) / blocks + 7) / 8 * 8;
  int64_t height = tile_height(rows), tiles = (rows + height - 1) / height;
  for (int64_t start = 0; start < inputs; start += block) {
    int64_t k = std::min(block, inputs - start);
    // few tiles pass over a panel: each fetches its share of the next one
    int64_t pace = tiles <= FETCHING ? (NR + tiles - 1) / tiles : 0;
    bool begins = start == 0, ends = start + k == inputs;
    for (int64_t panel = first; panel < last; panel++) {
      const float* bias = packed + panel * panel_numbers(inputs);
      const float* weights = bias + NR + start * NR;
      int64_t columns = std::min<int64_t>(NR, outputs - panel * NR);
      float* to = out + panel * NR;
      for (int64_t row = 0; row < rows; row += height) {
        tile(
            std::min(height, rows - row), k, x + row * ldx + start, ldx, weights,
            [&](int m, vec* acc) {
              if (begins) {
                acc[0] = load(bias), acc[1] = load(bias + W);
              } else {
                load_columns(to + (row + m) * ldo, acc, columns);
              }
            },
            [&](int m, vec* acc) {
              if (ends && activation != NONE) {
                acc[0] = activated(acc[0], activation), acc[1] = activated(acc[1], activation);
              }
              store_columns(to + (row + m) * ldo, acc, columns);
            },
            weights + panel_numbers(inputs) + row / height * k * pace, pace);
      }
    }
  }
}

// A product of so many rows in pieces: piece(row, rows, first panel, panel behind the last one).
template <class Piece>
void in_pieces(int64_t rows, int64_t inputs, int64_t outputs, int threads, const Piece& piece) {
  if (rows <= 0) return;
  int64_t panels = panels_of(outputs), parts = (rows + ROWS - 1) / ROWS;
  // even parts, of whole tiles
  int64_t height = ((rows + parts - 1) / parts + MR - 1) / MR * MR;
  parts = (rows + height - 1) / height;
  // pieces of a quarter of a million multiplications or more, and if there can be, eight a thread
  int64_t least_width = std::max<int64_t>(1, (1 << 18) / (height * inputs * NR));
  int64_t wanted = (8 * threads + parts - 1) / parts;
  int64_t width = threads <= 1 ? panels : std::max(least_width, std::max<int64_t>(1, panels / wanted));
  int64_t across = (panels + width - 1) / width;
  pool().run(parts * across, threads, [&](int64_t i) {
    int64_t row = i / across * height, first = i % across * width;
    piece(row, std::min(height, rows - row), first, std::min(first + width, panels));
  });
}

// ---- products of int8 weights

// Inputs are taken in blocks. A block's weights are int8, each output with its scale; its inputs become
// whole numbers, each row with its step: 16 bits, or where the processor sums products of bytes (VNNI)
// 8 bits, which is twice as fast. A block's sums are exact in 32 bits. GROUP numbers of a row fill 32
// bits.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
typedef uint8_t Whole;
#else
typedef int16_t Whole;
#endif
constexpr bool BYTES = sizeof(Whole) == 1;
constexpr int64_t BLOCK = 128, GROUP = 4 / sizeof(Whole);

inline int64_t blocks_of(int64_t inputs) { return (inputs + BLOCK - 1) / BLOCK; }
inline int64_t groups_of(int64_t inputs) { return (inputs + GROUP - 1) / GROUP; }

// What an input is multiplied by before it is rounded, for all inputs; then the panels.
inline int64_t factor_bytes(int64_t inputs) { return (inputs + W - 1) / W * W * sizeof(float); }

// Of NR outputs: biases; then for each block scales, the sums of its scaled weights, and for each group
// of inputs GROUP numbers an output.
constexpr int64_t BIASES = 4 * NR, SCALES = 8 * NR;
inline int64_t panel_bytes(int64_t inputs) {
  return BIASES + blocks_of(inputs) * SCALES + groups_of(inputs) * GROUP * NR;
}

// A whole number of a row's block is worth number * step - offset.
struct Worth {
  float step, offset;
};

#if defined(__AVX2__)
#if defined(__AVX512F__)
typedef __m512i wide;
inline wide everywhere(int32_t x) { return _mm512_set1_epi32(x); }
inline vec to_floats(ivec sums) { return vec(_mm512_cvtepi32_ps(wide(sums))); }
inline wide rounded(vec v) { return _mm512_cvtps_epi32(__m512(v)); }
inline void store_whole(wide v, uint8_t* to) {
  __m512i positive = _mm512_max_epi32(v, _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(positive));
}
inline void store_whole(wide v, int16_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(v));
}
#if defined(__AVX512VNNI__)
inline wide load_weights(const int8_t* p) { return _mm512_loadu_si512(p); }
inline ivec plus_products(ivec sums, wide a, wide b) {
  return ivec(_mm512_dpbusd_epi32(wide(sums), a, b));
}
#else
inline wide load_weights(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline ivec plus_products(ivec sums, wide a, wide b) { return sums + ivec(_mm512_madd_epi16(a, b)); }
#endif
#else
typedef __m256i wide;
inline wide everywhere(int32_t x) { return _mm256_set1_epi32(x); }
inline vec to_floats(ivec sums) { return vec(_mm256_cvtepi32_ps(wide(sums))); }
inline wide rounded(vec v) { return _mm256_cvtps_epi32(__m256(v)); }
inline __m128i narrowed(wide v) {
  return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
inline void store_whole(wide v, uint8_t* to) {
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(narrowed(v), narrowed(v)));
}
inline void store_whole(wide v, int16_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrowed(v));
}
#if defined(__AVXVNNI__)
inline wide load_weights(const int8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline ivec plus_products(ivec sums, wide a, wide b) {
  return ivec(_mm256_dpbusd_avx_epi32(wide(sums), a, b));
}
#else
inline wide load_weights(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline ivec plus_products(ivec sums, wide a, wide b) { return sums + ivec(_mm256_madd_epi16(a, b)); }
#endif
#endif

inline wide group_everywhere(const Whole* p) {
  int32_t group;
  std::memcpy(&group, p, sizeof group);
  return everywhere(group);
}

// acc[m] = bias + sum over blocks of their products, for M rows; what lies from `ahead` on is fetched
// meanwhile, `pace` bytes for each group.
template <int M>
inline void whole_tile(int64_t inputs, const Whole* a, int64_t lda, const Worth* worth, const int8_t* panel,
                       const int8_t* ahead, int64_t pace, vec (&acc)[MR][2]) {
  int64_t blocks = blocks_of(inputs);
  const float* bias = reinterpret_cast<const float*>(panel);
  for (int m = 0; m < M; m++) acc[m][0] = load(bias), acc[m][1] = load(bias + W);
  panel += BIASES;
  for (int64_t block = 0; block < blocks; block++, worth++) {
    const float* scales = reinterpret_cast<const float*>(panel);
    int64_t groups = groups_of(std::min(BLOCK, inputs - block * BLOCK));
    ivec s[M][2];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) s[m][0] = s[m][1] = ivec{};
    panel += SCALES;
    for (int64_t i = 0; i < groups; i++, panel += GROUP * NR, a += GROUP) {
      wide b0 = load_weights(panel), b1 = load_weights(panel + GROUP * W);
      __builtin_prefetch(ahead, 0, 2);
      ahead += pace;
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        wide x = group_everywhere(a + m * lda);
        s[m][0] = plus_products(s[m][0], x, b0);
        s[m][1] = plus_products(s[m][1], x, b1);
      }
    }
    vec scale0 = load(scales), scale1 = load(scales + W);
    vec total0 = load(scales + NR), total1 = load(scales + NR + W);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      vec step = all(worth[m * blocks].step);
      acc[m][0] += to_floats(s[m][0]) * (scale0 * step), acc[m][1] += to_floats(s[m][1]) * (scale1 * step);
      if (BYTES) {
        vec offset = all(worth[m * blocks].offset);
        acc[m][0] -= total0 * offset, acc[m][1] -= total1 * offset;
      }
    }
  }
}

// Up to W inputs times their factors, the others 0.
inline vec scaled_inputs(const float* x, const float* factors, int64_t count) {
  if (count >= W) return load(x) * load(factors);
  vec v{};
  std::memcpy(&v, x, count * sizeof(float));
  return v * load(factors);
}

// A block of a row as whole numbers, as many as fill its vectors. One that is not finite is worth NaN.
Worth whole_block(const float* x, const float* factors, int64_t inputs, Whole* out) {
  vec low{}, high{}, poison{};
  for (int64_t i = 0; i < inputs; i += W) {
    vec v = scaled_inputs(x + i, factors + i, inputs - i);
    low = least(low, v), high = most(high, v);
    poison += v * 0.0f;
  }
  if (sum(poison) != 0) return {NAN, NAN};  // `out` is not read into anything finite
  float bottom = 0, top = 0, zero = 0, step;
  for (int i = 0; i < W; i++) bottom = std::min(bottom, low[i]), top = std::max(top, high[i]);
  if (BYTES) {  // from the least input, or 0, to the largest
    step = std::max(top / UINT8_MAX - bottom / UINT8_MAX, 1e-30f);
    zero = std::nearbyint(-bottom / step);
  } else {
    step = std::max(std::max(top, -bottom), 1e-30f) / INT16_MAX;
  }
  float inverse = 1.0f / step;
  for (int64_t i = 0; i < inputs; i += W) {
    vec v = scaled_inputs(x + i, factors + i, inputs - i) * inverse + zero;
    store_whole(rounded(v), out + i);
  }
  return {step, zero * step};
}

void whole_piece(const Whole* x, int64_t width, const Worth* worth, int64_t rows, int64_t inputs,
                 const int8_t* packed, int64_t first, int64_t last, int64_t outputs, float* out,
                 int64_t ldo, int activation) {
  int64_t blocks = blocks_of(inputs), groups = groups_of(inputs), height = tile_height(rows);
  int64_t tiles = (rows + height - 1) / height;
  int64_t pace = (GROUP * NR + tiles - 1) / tiles;
  for (int64_t panel = first; panel < last; panel++) {
    const int8_t* from = packed + panel * panel_bytes(inputs);
    int64_t columns = std::min<int64_t>(NR, outputs - panel * NR);
    for (int64_t row = 0; row < rows; row += height) {
      int64_t taken = std::min(height, rows - row);
      vec acc[MR][2];
      with_height(taken, [&](auto m) {
        whole_tile<decltype(m)::value>(
            inputs, x + row * width, width, worth + row * blocks, from,
            from + panel_bytes(inputs) + row / height * groups * pace, pace, acc);
      });
      for (int64_t m = 0; m < taken; m++) {
        acc[m][0] = activated(acc[m][0], activation), acc[m][1] = activated(acc[m][1], activation);
        store_columns(out + (row + m) * ldo + panel * NR, acc[m], columns);
      }
    }
  }
}
#endif

// ---- rows

void norm_row(const float* x, const float* weight, const float* bias, int64_t width, float eps,
              float* out) {
  int64_t whole = width / W * W;
  vec s{};
  for (int64_t i = 0; i < whole; i += W) s += load(x + i);
  float total = sum(s);
  for (int64_t i = whole; i < width; i++) total += x[i];
  float mean = total / static_cast<float>(width);
  vec q{};
  for (int64_t i = 0; i < whole; i += W) {
    vec d = load(x + i) - mean;
    q += d * d;
  }
  float squares = sum(q);
  for (int64_t i = whole; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
  float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < whole; i += W) {
    store(out + i, (load(x + i) - mean) * scale * load(weight + i) + load(bias + i));
  }
  for (int64_t i = whole; i < width; i++) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

// The numbers from `first` to `last` become their softmax, all others 0; `size` is a multiple of W. If
// one of them is not finite, all become NaN.
void softmax(float* s, int64_t size, int64_t first, int64_t last) {
  for (int64_t i = 0; i < first; i++) s[i] = -FLT_MAX;
  for (int64_t i = last; i < size; i++) s[i] = -FLT_MAX;
  vec top = load(s), poison{};
  for (int64_t i = 0; i < size; i += W) {
    vec v = load(s + i);
    top = most(top, v);
    poison += v * 0.0f;
  }
  float largest = top[0];
  for (int i = 1; i < W; i++) largest = std::max(largest, top[i]);
  for (int64_t i = 0; i < size; i += W) store(s + i, exp(load(s + i) - largest));
  for (int64_t i = 0; i < first; i++) s[i] = 0;  // exp never gives that
  for (int64_t i = last; i < size; i++) s[i] = 0;
  vec total{};
  for (int64_t i = 0; i < size; i += W) total += load(s + i);
  float inverse = 1.0f / sum(total) + sum(poison);
  for (int64_t i = 0; i < size; i += W) store(s + i, load(s + i) * inverse);
}

// Attention of one head of one row: `q`, `k` and `v` are [length, size], `ld` apart. A token sees
// those that are at most `window` away.
void attend(const float* q, const float* k, const float* v, int64_t ld, int64_t length, int64_t size,
            int64_t window, float scale, float* out, int64_t ldo) {
  constexpr int64_t QUERIES = 8 * MR;  // at once
  int64_t panels = panels_of(length), outputs = panels_of(size);
  float* kt = scratch(0, panels * size * NR);     // for each panel of NR keys [size, NR]
  float* vp = scratch(1, outputs * length * NR);  // for each panel of NR outputs [length, NR]
  for (int64_t panel = 0; panel < panels; panel++) {
    to_panel(k + panel * NR * ld, ld, std::min<int64_t>(NR, length - panel * NR), size,
              kt + panel * NR * size);
  }
  for (int64_t panel = 0; panel < outputs; panel++) {
    int64_t columns = std::min<int64_t>(NR, size - panel * NR);
    for (int64_t i = 0; i < length; i++) {
      vec row[2];
      load_columns(v + i * ld + panel * NR, row, columns);
      float* to = vp + (panel * length + i) * NR;
      store(to, row[0]), store(to + W, row[1]);
    }
  }
  for (int64_t start = 0; start < length; start += QUERIES) {
    int64_t queries = std::min(QUERIES, length - start), height = tile_height(queries);
    // the panels of keys that some of these queries see
    int64_t first = std::max<int64_t>(0, start - window) / NR;
    int64_t last = panels_of(std::min(length, start + queries + window));
    int64_t before = first * NR, keys = (last - first) * NR;
    float* scores = scratch(2, queries * keys);
    for (int64_t panel = first; panel < last; panel++) {
      for (int64_t row = 0; row < queries; row += height) {
        tile(
            std::min(height, queries - row), size, q + (start + row) * ld, ld,
            kt + panel * NR * size, [](int, vec* acc) { acc[0] = acc[1] = vec{}; },
            [&](int m, vec* acc) {
              float* to = scores + (row + m) * keys + panel * NR - before;
              store(to, acc[0] * scale), store(to + W, acc[1] * scale);
            });
      }
    }
    for (int64_t row = 0; row < queries; row++) {
      int64_t from = std::max<int64_t>(0, start + row - window) - before;
      int64_t to = std::min(length, start + row + window + 1) - before;
      softmax(scores + row * keys, keys, from, to);
    }
    int64_t seen = std::min(length - before, keys);
    for (int64_t panel = 0; panel < outputs; panel++) {
      int64_t columns = std::min<int64_t>(NR, size - panel * NR);
      for (int64_t row = 0; row < queries; row += height) {
        tile(
            std::min(height, queries - row), seen, scores + row * keys, keys,
            vp + (panel * length + before) * NR, [](int, vec* acc) { acc[0] = acc[1] = vec{}; },
            [&](int m, vec* acc) {
              store_columns(out + (start + row + m) * ldo + panel * NR, acc, columns);
            });
      }
    }
  }
}

// ---- adapters

constexpr int64_t TOKENS = 8 * MR;  // of an adapter, that a thread takes at once

// y += scale * (up * act(down * x + down_bias) + up_bias) for up to TOKENS tokens. The weights are as
// the file has them, [rank, inputs] and [outputs, rank]; they become panels here, as few numbers
// beside those of the products.
void adapt_tokens(const float* x, int64_t ldx, float* y, int64_t ldy, int64_t tokens, int64_t inputs,
                  int64_t outputs, const float* down, const float* down_bias, const float* up,
                  const float* up_bias, int64_t rank, float scale, int activation) {
  int64_t width = panels_of(rank) * NR, height = tile_height(tokens);
  float* panel = scratch(0, std::max(inputs, rank) * NR);
  float* inner = scratch(1, tokens * width);
  for (int64_t first = 0; first < rank; first += NR) {
    int64_t columns = std::min<int64_t>(NR, rank - first);
    to_panel(down + first * inputs, inputs, columns, inputs, panel);
    vec bias[2] = {};
    if (down_bias) load_columns(down_bias + first, bias, columns);
    for (int64_t row = 0; row < tokens; row += height) {
      tile(
          std::min(height, tokens - row), inputs, x + row * ldx, ldx, panel,
          [&](int, vec* acc) { acc[0] = bias[0], acc[1] = bias[1]; },
          [&](int m, vec* acc) {
            float* to = inner + (row + m) * width + first;
            store(to, activated(acc[0], activation)), store(to + W, activated(acc[1], activation));
          });
    }
  }
  for (int64_t first = 0; first < outputs; first += NR) {
    int64_t columns = std::min<int64_t>(NR, outputs - first);
    to_panel(up + first * rank, rank, columns, rank, panel);
    vec bias[2] = {};
    if (up_bias) load_columns(up_bias + first, bias, columns);
    for (int64_t row = 0; row < tokens; row += height) {
      tile(
          std::min(height, tokens - row), rank, inner + row * width, width, panel,
          [&](int, vec* acc) { acc[0] = bias[0], acc[1] = bias[1]; },
          [&](int m, vec* acc) {
            float* to = y + (row + m) * ldy + first;
            vec before[2];
            load_columns(to, before, columns);
            acc[0] = before[0] + scale * acc[0], acc[1] = before[1] + scale * acc[1];
            store_columns(to, acc, columns);
          });
    }
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// The kernels' interface; library.py asks for the number that it knows.
int32_t adamix_interface() { return 2; }

// How many numbers a linear layer's packed weights take.
int64_t adamix_packed(int64_t inputs, int64_t outputs) {
  return panels_of(outputs) * panel_numbers(inputs);
}

// weight is [outputs, inputs], bias [outputs].
void adamix_pack(const float* weight, const float* bias, int64_t inputs, int64_t outputs,
                 float* packed) {
  for (int64_t panel = 0; panel < panels_of(outputs); panel++) {
    float* to = packed + panel * panel_numbers(inputs);
    int64_t columns = std::min<int64_t>(NR, outputs - panel * NR);
    for (int64_t j = 0; j < NR; j++) to[j] = j < columns ? bias[panel * NR + j] : 0.0f;
    to_panel(weight + panel * NR * inputs, inputs, columns, inputs, to + NR);
  }
}

// out = act(x * weight^T + bias): x is [rows, inputs], out [rows, outputs].
void adamix_linear(const float* x, int64_t ldx, int64_t rows, int64_t inputs, int64_t outputs,
                   const float* packed, float* out, int64_t ldo, int32_t activation, int32_t threads) {
  in_pieces(rows, inputs, outputs, threads, [=](int64_t row, int64_t taken, int64_t first, int64_t last) {
    linear_piece(x + row * ldx, ldx, taken, inputs, packed, first, last, outputs, out + row * ldo, ldo,
                 activation);
  });
}

// To how many bits inputs are rounded for int8 weights; 0 where there are no kernels for them.
int32_t adamix_int8_inputs() {
#if defined(__AVX2__)
  return 8 * sizeof(Whole);
#else
  return 0;
#endif
}

#if defined(__AVX2__)
int64_t adamix_packed_int8(int64_t inputs, int64_t outputs) {
  return factor_bytes(inputs) + panels_of(outputs) * panel_bytes(inputs);
}

// How many inputs have a scale of their own.
int64_t adamix_int8_block() { return BLOCK; }

// weight is [outputs, inputs], of -127 to 127; scales is [outputs, blocks] and bias [outputs]. factors,
// [inputs], is what the inputs are multiplied by.
void adamix_pack_int8(const int8_t* weight, const float* scales, const float* bias, const float* factors,
                      int64_t inputs, int64_t outputs, int8_t* packed) {
  std::memset(packed, 0, adamix_packed_int8(inputs, outputs));
  std::memcpy(packed, factors, inputs * sizeof(float));
  int64_t blocks = blocks_of(inputs);
  for (int64_t j = 0; j < outputs; j++) {
    int64_t column = j % NR;
    int8_t* to = packed + factor_bytes(inputs) + j / NR * panel_bytes(inputs);
    std::memcpy(to + 4 * column, bias + j, 4);
    to += BIASES;
    for (int64_t block = 0; block < blocks; block++) {
      int64_t count = std::min(BLOCK, inputs - block * BLOCK);
      const int8_t* from = weight + j * inputs + block * BLOCK;
      int32_t total = 0;
      for (int64_t i = 0; i < count; i++) {
        to[SCALES + i / GROUP * GROUP * NR + GROUP * column + i % GROUP] = from[i];
        total += from[i];
      }
      float scale = scales[j * blocks + block], scaled = static_cast<float>(total) * scale;
      std::memcpy(to + 4 * column, &scale, 4);
      std::memcpy(to + 4 * (NR + column), &scaled, 4);
      to += SCALES + groups_of(count) * GROUP * NR;
    }
  }
}

// out = act(x * weight^T + bias), with x rounded to whole numbers, row by row and block by block.
void adamix_linear_int8(const float* x, int64_t ldx, int64_t rows, int64_t inputs, int64_t outputs,
                        const int8_t* packed, float* out, int64_t ldo, int32_t activation,
                        int32_t threads) {
  constexpr int64_t AT_ONCE = 32;
  int64_t width = (inputs + W - 1) / W * W, blocks = blocks_of(inputs);
  const float* factors = reinterpret_cast<const float*>(packed);
  const int8_t* panels = packed + factor_bytes(inputs);
  Worth* worth = reinterpret_cast<Worth*>(scratch(3, rows * (2 * blocks + width / GROUP)));
  Whole* whole = reinterpret_cast<Whole*>(worth + rows * blocks);
  pool().run((rows + AT_ONCE - 1) / AT_ONCE, threads, [=](int64_t piece) {
    for (int64_t row = piece * AT_ONCE; row < std::min(rows, (piece + 1) * AT_ONCE); row++) {
      for (int64_t block = 0; block < blocks; block++) {
        int64_t at = block * BLOCK;
        worth[row * blocks + block] = whole_block(
            x + row * ldx + at, factors + at, std::min(BLOCK, inputs - at), whole + row * width + at);
      }
    }
  });
  in_pieces(rows, inputs, outputs, threads, [=](int64_t row, int64_t taken, int64_t first, int64_t last) {
    whole_piece(whole + row * width, width, worth + row * blocks, taken, inputs, panels, first, last,
                outputs, out + row * ldo, ldo, activation);
  });
}
#endif

// x = act(x), of `numbers` that follow each other.
void adamix_activate(float* x, int64_t numbers, int32_t activation, int32_t threads) {
  constexpr int64_t AT_ONCE = 1 << 14;
  pool().run((numbers + AT_ONCE - 1) / AT_ONCE, threads, [=](int64_t piece) {
    int64_t end = std::min(numbers, (piece + 1) * AT_ONCE);
    for (int64_t i = piece * AT_ONCE; i < end; i += NR) {
      vec v[2];
      load_columns(x + i, v, end - i);
      v[0] = activated(v[0], activation), v[1] = activated(v[1], activation);
      store_columns(x + i, v, end - i);
    }
  });
}

// out = x * weight^T + bias for few outputs, whose weights are as the file has them: x is [rows,
// inputs], weight [outputs, inputs], out [rows, outputs].
void adamix_dots(const float* x, int64_t ldx, int64_t rows, int64_t inputs, int64_t outputs,
                 const float* weight, const float* bias, float* out) {
  int64_t whole = inputs / NR * NR;
  for (int64_t row = 0; row < rows; row++) {
    const float* a = x + row * ldx;
    for (int64_t j = 0; j < outputs; j++) {
      const float* b = weight + j * inputs;
      vec s0{}, s1{};
      for (int64_t i = 0; i < whole; i += NR) {
        s0 += load(a + i) * load(b + i);
        s1 += load(a + i + W) * load(b + i + W);
      }
      float total = sum(s0 + s1);
      for (int64_t i = whole; i < inputs; i++) total += a[i] * b[i];
      out[row * outputs + j] = total + bias[j];
    }
  }
}

// out = norm(x + y), or norm(x) without y; all are [rows, width]. out may be y.
void adamix_add_norm(const float* x, const float* y, const float* weight, const float* bias,
                     int64_t rows, int64_t width, float eps, float* out, int32_t threads) {
  constexpr int64_t AT_ONCE = 32;
  pool().run((rows + AT_ONCE - 1) / AT_ONCE, threads, [=](int64_t i) {
    for (int64_t row = i * AT_ONCE; row < std::min(rows, (i + 1) * AT_ONCE); row++) {
      float* to = out + row * width;
      const float* from = x + row * width;
      if (y) {
        for (int64_t j = 0; j < width; j++) to[j] = y[row * width + j] + from[j];
        from = to;
      }
      norm_row(from, weight, bias, width, eps, to);
    }
  });
}

// Each row of the packed batch attends to itself: qkv is [tokens, 3 * heads * size], row i's tokens are
// bounds[i] to bounds[i + 1], out is [tokens, heads * size]. A token sees those that are at most `window`
// away.
void adamix_attention(const float* qkv, const int32_t* bounds, int64_t rows, int64_t heads,
                      int64_t size, int64_t window, float scale, float* out, int32_t threads) {
  int64_t width = heads * size;
  pool().run(rows * heads, threads, [=](int64_t i) {
    int64_t row = i / heads, head = i % heads, start = bounds[row];
    const float* q = qkv + start * 3 * width + head * size;
    attend(q, q + width, q + 2 * width, 3 * width, bounds[row + 1] - start, size, window, scale,
           out + start * width + head * size, width);
  });
}

// Up to three tables' rows, summed, and their norm. types and positions may be null.
void adamix_embed(const int64_t* ids, const int64_t* types, const int64_t* positions,
                  const float* word_table, const float* type_table, const float* position_table,
                  const float* weight, const float* bias, int64_t tokens, int64_t width, float eps,
                  float* out, int32_t threads) {
  constexpr int64_t AT_ONCE = 32;
  pool().run((tokens + AT_ONCE - 1) / AT_ONCE, threads, [=](int64_t piece) {
    for (int64_t i = piece * AT_ONCE; i < std::min(tokens, (piece + 1) * AT_ONCE); i++) {
      float* to = out + i * width;
      std::memcpy(to, word_table + ids[i] * width, width * sizeof(float));
      if (types) {
        const float* from = type_table + types[i] * width;
        for (int64_t j = 0; j < width; j++) to[j] += from[j];
      }
      if (positions) {
        const float* from = position_table + positions[i] * width;
        for (int64_t j = 0; j < width; j++) to[j] += from[j];
      }
      norm_row(to, weight, bias, width, eps, to);
    }
  });
}

// One adapter at one site of all its layers, and its tokens in the batch. The biases may be null.
struct Part {
  const float *down, *down_bias, *up, *up_bias;  // [L, rank, inputs], [L, rank], [L, outputs, rank], [L, outputs]
  int64_t rank, first_layer, start, stop;
  float scale;
  int32_t activation;
};

// y += scale * (up * act(down * x + down_bias) + up_bias), each adapter for its own tokens. x may be y.
void adamix_adapt(const Part* parts, int64_t count, int64_t layer, const float* x, int64_t ldx,
                  float* y, int64_t ldy, int64_t inputs, int64_t outputs, int32_t threads) {
  struct Piece {
    const Part* part;
    int64_t start, tokens;
  };
  thread_local std::vector<Piece> pieces;
  pieces.clear();
  for (const Part* part = parts; part < parts + count; part++) {
    if (layer < part->first_layer) continue;
    for (int64_t start = part->start; start < part->stop; start += TOKENS) {
      pieces.push_back({part, start, std::min(TOKENS, part->stop - start)});
    }
  }
  const Piece* all_pieces = pieces.data();
  pool().run(static_cast<int64_t>(pieces.size()), threads, [=](int64_t i) {
    const Piece& piece = all_pieces[i];
    const Part& part = *piece.part;
    int64_t at = layer - part.first_layer;
    adapt_tokens(x + piece.start * ldx, ldx, y + piece.start * ldy, ldy, piece.tokens, inputs, outputs,
                part.down + at * part.rank * inputs,
                part.down_bias ? part.down_bias + at * part.rank : nullptr,
                part.up + at * outputs * part.rank,
                part.up_bias ? part.up_bias + at * outputs : nullptr, part.rank, part.scale,
                part.activation);
  });
}
}
#pragma GCC visibility pop
