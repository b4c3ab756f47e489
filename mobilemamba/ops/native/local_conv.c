/* The local part of MRFFI: y = relu(scale * relu(x * w + bias) + shift), a depthwise convolution of channels-last maps.
 *
 * Input and output are slices of the channels of wider maps. */
#include "simd.h"

typedef struct {
    int64_t batch, height, width, channels, kernel; /* odd; the padding is kernel / 2 */
    int64_t type, threads;
    const void *x;
    void *y;
    int64_t x_stride[3], y_stride[3];           /* elements: picture, row, column */
    const float *weight;                        /* (kernel, kernel, C) */
    const float *bias, *scale, *shift;          /* (C) */
} local_args;

INLINE void local_row(const local_args *a, dtype type, int64_t b, int64_t row, block at, const int64_t n) {
    int64_t c = at.start, kernel = a->kernel, top = row - kernel / 2;
    int64_t first_y = top < 0 ? -top : 0, last_y = smaller(kernel, a->height - top);
    vec bias = load(a->bias, c, FLOAT32, n), scale = load(a->scale, c, FLOAT32, n), shift = load(a->shift, c, FLOAT32, n);
    for (int64_t column = 0; column < a->width; column++) {
        int64_t left = column - kernel / 2;
        int64_t first_x = left < 0 ? -left : 0, last_x = smaller(kernel, a->width - left);
        vec sum = bias;
        for (int64_t y = first_y; y < last_y; y++) {
            int64_t from = b * a->x_stride[0] + (top + y) * a->x_stride[1] + left * a->x_stride[2] + c;
            for (int64_t x = first_x; x < last_x; x++)
                sum += load(a->weight, (y * kernel + x) * a->channels + c, FLOAT32, n) *
                       load(a->x, from + x * a->x_stride[2], type, n);
        }
        int64_t to = b * a->y_stride[0] + row * a->y_stride[1] + column * a->y_stride[2] + c;
        store(a->y, to, type, at.skip, n, max_vec(max_vec(sum, splat(0)) * scale + shift, splat(0)));
    }
}

CLONED static void local_task(const local_args *a, int64_t task) {
    int64_t b = task / a->height, row = task % a->height;
    for (int64_t i = 0; i < blocks_of(a->channels); i++) {
        block at = block_at(a->channels, i);
        if (a->type == BFLOAT16) local_row(a, BFLOAT16, b, row, at, at.n);
        else if (at.n == LANES) local_row(a, FLOAT32, b, row, at, LANES);
        else local_row(a, FLOAT32, b, row, at, at.n);
    }
}

void mobilemamba_local_conv(const local_args *a) {
#pragma omp parallel for schedule(static) num_threads((int)a->threads)
    for (int64_t task = 0; task < a->batch * a->height; task++) local_task(a, task);
}
