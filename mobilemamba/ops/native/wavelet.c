/* The wavelet branch in one pass: Haar transform, depthwise convolution of the four sub-bands, inverse transform.
 *
 * y = relu(haar^-1(haar(x) * w) + other), channels-last, with `other` and ReLU optional; input and output may be slices
 * of the channels of wider maps. Maps with odd sides are padded with zeros, and the result is cropped. The functions
 * return 0, or 1 if there is no memory. */
#include "simd.h"

typedef struct {
    int64_t batch, height, width, channels, kernel;
    int64_t type, threads, relu;
    const void *x, *other;
    void *y;
    int64_t x_stride[3], other_stride[3], y_stride[3]; /* elements: picture, row, column */
    const float *weight; /* (4, kernel, kernel, C): sub-bands LL, HL (high along H), LH, HH */
    float *grad_weight;  /* of the same shape; `other` is then the gradient of y */
} wavelet_args;

SIZE_OF(wavelet_args);

INLINE void convolve(const vec *from, vec *to, const float *weight, int64_t rows, int64_t columns, int64_t kernel,
                     int64_t channels, int64_t n, vec *any_taps) {
    vec few_taps[9], *taps = kernel == 3 ? few_taps : any_taps; /* in registers for the common size */
    for (int64_t i = 0; i < kernel * kernel; i++) taps[i] = load(weight, i * channels, FLOAT32, n);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            int64_t top = i - kernel / 2, left = j - kernel / 2;
            int64_t last_y = smaller(kernel, rows - top), last_x = smaller(kernel, columns - left);
            vec sum = splat(0);
            for (int64_t y = top < 0 ? -top : 0; y < last_y; y++)
                for (int64_t x = left < 0 ? -left : 0; x < last_x; x++)
                    sum += taps[y * kernel + x] * from[(top + y) * columns + left + x];
            to[i * columns + j] = sum;
        }
}

/* Haar's transform of n channels of a map; writes `bands`, vectors (4, rows, columns). */
INLINE void transform(const void *x, const int64_t *stride, dtype type, int64_t height, int64_t width, int64_t first,
                      const int64_t n, vec *bands) {
    int64_t rows = (height + 1) / 2, columns = (width + 1) / 2, size = rows * columns;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            vec p[2][2];
            for (int64_t y = 0; y < 2; y++)
                for (int64_t x_ = 0; x_ < 2; x_++) {
                    int64_t row = 2 * i + y, column = 2 * j + x_;
                    int64_t from = first + row * stride[1] + column * stride[2];
                    p[y][x_] = row < height && column < width ? load(x, from, type, n) * 0.5f : splat(0);
                }
            vec above = p[0][0] + p[0][1], below = p[1][0] + p[1][1];
            vec above_w = p[0][0] - p[0][1], below_w = p[1][0] - p[1][1];
            vec *to = bands + i * columns + j;
            to[0] = above + below, to[size] = above - below;
            to[2 * size] = above_w + below_w, to[3 * size] = above_w - below_w;
        }
}

INLINE int wavelet_block(const wavelet_args *a, dtype type, int64_t b, block at, const int64_t n) {
    int64_t c = at.start;
    int64_t rows = (a->height + 1) / 2, columns = (a->width + 1) / 2, size = rows * columns;
    vec *bands = vectors(8 * size + a->kernel * a->kernel);
    if (!bands) return 1;
    vec *mixed = bands + 4 * size, *taps = mixed + 4 * size;
    transform(a->x, a->x_stride, type, a->height, a->width, b * a->x_stride[0] + c, n, bands);
    for (int64_t band = 0; band < 4; band++) {
        const float *weight = a->weight + band * a->kernel * a->kernel * a->channels + c;
        const vec *from = bands + band * size;
        vec *to = mixed + band * size;
        if (a->kernel == 3) convolve(from, to, weight, rows, columns, 3, a->channels, n, taps);
        else convolve(from, to, weight, rows, columns, a->kernel, a->channels, n, taps);
    }
    for (int64_t row = 0; row < a->height; row++)
        for (int64_t column = 0; column < a->width; column++) {
            const vec *from = mixed + row / 2 * columns + column / 2;
            vec low = row % 2 ? from[0] - from[size] : from[0] + from[size];
            vec high = row % 2 ? from[2 * size] - from[3 * size] : from[2 * size] + from[3 * size];
            vec y = (column % 2 ? low - high : low + high) * 0.5f;
            if (a->other)
                y += load(a->other, b * a->other_stride[0] + row * a->other_stride[1] + column * a->other_stride[2] + c,
                          type, n);
            if (a->relu) y = max_vec(y, splat(0));
            store(a->y, b * a->y_stride[0] + row * a->y_stride[1] + column * a->y_stride[2] + c, type, at.skip, n, y);
        }
    free(bands);
    return 0;
}

CLONED static int wavelet_task(const wavelet_args *a, int64_t task) {
    int64_t blocks = blocks_of(a->channels), b = task / blocks;
    block at = block_at(a->channels, task % blocks);
    if (a->type == BFLOAT16) return wavelet_block(a, BFLOAT16, b, at, at.n);
    if (at.n == LANES) return wavelet_block(a, FLOAT32, b, at, LANES);
    return wavelet_block(a, FLOAT32, b, at, at.n);
}

int mobilemamba_wavelet(const wavelet_args *a) {
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads((int)a->threads) reduction(| : failed)
    for (int64_t task = 0; task < a->batch * blocks_of(a->channels); task++) failed |= wavelet_task(a, task);
    return failed;
}

/* The gradient of one sub-band's kernels: products of the transforms of x and of y's gradient, summed over the batch. */
INLINE int weight_block(const wavelet_args *a, dtype type, int64_t band, block at, const int64_t n) {
    int64_t rows = (a->height + 1) / 2, columns = (a->width + 1) / 2, size = rows * columns, kernel = a->kernel;
    vec *of_x = vectors(8 * size + kernel * kernel);
    if (!of_x) return 1;
    vec *of_grad = of_x + 4 * size, *sums = of_grad + 4 * size;
    for (int64_t tap = 0; tap < kernel * kernel; tap++) sums[tap] = splat(0);
    for (int64_t b = 0; b < a->batch; b++) {
        transform(a->x, a->x_stride, type, a->height, a->width, b * a->x_stride[0] + at.start, n, of_x);
        transform(a->other, a->other_stride, type, a->height, a->width, b * a->other_stride[0] + at.start, n, of_grad);
        const vec *from = of_x + band * size, *grad = of_grad + band * size;
        for (int64_t y = 0; y < kernel; y++)
            for (int64_t x = 0; x < kernel; x++) {
                int64_t down = y - kernel / 2, right = x - kernel / 2;
                vec sum = splat(0);
                for (int64_t i = down < 0 ? -down : 0; i < smaller(rows, rows - down); i++)
                    for (int64_t j = right < 0 ? -right : 0; j < smaller(columns, columns - right); j++)
                        sum += grad[i * columns + j] * from[(i + down) * columns + j + right];
                sums[y * kernel + x] += sum;
            }
    }
    for (int64_t tap = 0; tap < kernel * kernel; tap++)
        store(a->grad_weight, (band * kernel * kernel + tap) * a->channels + at.start, FLOAT32, at.skip, n, sums[tap]);
    free(of_x);
    return 0;
}

CLONED static int weight_task(const wavelet_args *a, int64_t task) {
    block at = block_at(a->channels, task / 4);
    if (a->type == BFLOAT16) return weight_block(a, BFLOAT16, task % 4, at, at.n);
    if (at.n == LANES) return weight_block(a, FLOAT32, task % 4, at, LANES);
    return weight_block(a, FLOAT32, task % 4, at, at.n);
}

int mobilemamba_wavelet_weight(const wavelet_args *a) {
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads((int)a->threads) reduction(| : failed)
    for (int64_t task = 0; task < 4 * blocks_of(a->channels); task++) failed |= weight_task(a, task);
    return failed;
}
