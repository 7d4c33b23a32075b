// The Fourier loss of class indices on a CPU, value and gradient in one pass over the batch. As many examples as a
// vector register has numbers go side by side, an example a lane, so that every step is full whatever the classes are.
// _kernel_cpu.py compiles it, and says what MOST_CLASSES is.

#include <algorithm>
#include <cstdint>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

// e^x for x <= 0: the power of two nearest to it, times the Taylor series of what is left, |r| <= ln 2 / 2, of which the
// first term left out is 5e-9. Below -87, where the power is no normal number, it is 0.
static inline Floats exponential(Floats x) {
    const float whole = 12582912;  // 3 * 2^22: a small number added to it loses its fraction, to the nearest integer
    const Floats shifted = x * 1.4426950408889634f + whole, n = shifted - whole;
    const Floats r = x - n * 0.693359375f + n * 2.1219444005469057e-4f;  // ln 2 in two parts, the first of 9 bits
    Floats series = r * (1.0f / 5040) + 1.0f / 720;
    for (const float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f}) series = series * r + term;
    const Integers power = ((Integers)shifted << 23) + (127 << 23);  // n where float32 keeps its exponent
    return x < -87.0f ? Floats{} : series * (Floats)power;
}

// Entries c to c + PART of u times a symmetric matrix: their sums stay in registers.
template <int PART>
static inline void multiply(const Floats* u, const float* matrix, int64_t classes, int64_t c, Floats* product) {
    Floats sum[PART] = {};
    for (int64_t k = 0; k < classes; k++)
        for (int i = 0; i < PART; i++) sum[i] += matrix[(c + i) * classes + k] * u[k];
    for (int i = 0; i < PART; i++) product[c + i] = sum[i];
}

// Logits and gradient (batch, classes), labels and value (batch), hessian (classes, classes). Value and gradient are
// multiplied by share. Returns 1, with nothing written, where a label is no class.
extern "C" int of_labels(const float* logits, const int64_t* labels, const float* hessian, float* value,
                         float* gradient, int64_t batch, int64_t classes, float share) {
    for (int64_t example = 0; example < batch; example++)
        if (labels[example] < 0 || labels[example] >= classes) return 1;
    Floats p[MOST_CLASSES], g[MOST_CLASSES];
    for (int64_t begin = 0; begin < batch; begin += LANES) {
        int64_t row[LANES], label[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            row[lane] = std::min(begin + lane, batch - 1);  // lanes beyond the batch do its last example once more
            label[lane] = labels[row[lane]];
        }
        for (int64_t c = 0; c < classes; c++)
            for (int lane = 0; lane < LANES; lane++) p[c][lane] = logits[row[lane] * classes + c];

        Floats most = p[0], total = {}, of_label, half = {}, mean = {};
        for (int64_t c = 1; c < classes; c++) most = p[c] > most ? p[c] : most;
        for (int64_t c = 0; c < classes; c++) total += p[c] = exponential(p[c] - most);
        for (int64_t c = 0; c < classes; c++) p[c] /= total;
        for (int lane = 0; lane < LANES; lane++) {
            of_label[lane] = p[label[lane]][lane];
            p[label[lane]][lane] -= 1;  // p - y
        }
        int64_t c = 0;
        for (; c + 8 <= classes; c += 8) multiply<8>(p, hessian, classes, c, g);
        for (; c + 2 <= classes; c += 2) multiply<2>(p, hessian, classes, c, g);
        for (; c < classes; c++) multiply<1>(p, hessian, classes, c, g);
        for (int64_t c = 0; c < classes; c++) half += p[c] * g[c];
        half *= share / 2;
        half = half < 0.0f ? Floats{} : half;  // rounding can take it below zero
        for (int lane = 0; lane < LANES; lane++) {
            value[row[lane]] = half[lane];
            p[label[lane]][lane] = of_label[lane];
        }
        for (int64_t c = 0; c < classes; c++) mean += p[c] * g[c];
        for (int64_t c = 0; c < classes; c++) g[c] = p[c] * (g[c] - mean) * share;
        for (int64_t c = 0; c < classes; c++)
            for (int lane = 0; lane < LANES; lane++) gradient[row[lane] * classes + c] = g[c][lane];
    }
    return 0;
}
