/* The selective scan of a sequence in several directions, forwards and backwards.
 *
 * Sequences lie channels-last: the D channels of a position are adjacent in memory. A direction is a list of positions,
 * so nothing is flipped or copied: u, dt, B, C and y are indexed by position, never by step. Letters as in the Python
 * code: B batch, K directions, D width, N state size, L length, R rank of the step size.
 *
 * Work is cut into tasks (picture x group of channels) whose results do not depend on the thread that runs them, and
 * sums over tasks are taken afterwards in a fixed order, so they have the same bits for any number of threads. The
 * passes return 0, or 1 if there is no memory. */
#include "simd.h"

#define GROUP 4 /* blocks of LANES channels over which the backward pass sums together */
#define STEPS 4 /* steps computed at a time: only the recurrence itself must wait for the previous step */

typedef struct {
    int64_t batch, directions, width, d_state, length, rank;
    int64_t type;          /* dtype of u, dt, y, gate and of their gradients; the rest is float */
    int64_t threads;
    const int32_t *order;  /* (K, L) positions in the order of visit */
    const void *u;         /* (B, K, L, D) by strides; a direction's stride may be 0 */
    const void *dt;        /* (B, K, L, D), or float (B, K, L, R) if rank > 0; channels are adjacent */
    const float *B, *C;    /* (B, K, L, N) by strides */
    const float *A;        /* (K, D, N) */
    const float *skip;     /* (K, D) */
    const float *bias;     /* (K, D) */
    const float *dt_weight; /* (K, R, D), if rank > 0 */
    void *y;               /* (B, K, L, D) by strides; summed over the directions if their stride is 0 */
    int64_t u_stride[3], dt_stride[3], B_stride[4], C_stride[4], y_stride[3]; /* elements: B, K, L(, N) */
    /* After the scan, over the channels of each position: LayerNorm, then times silu(gate). Neither if null. */
    const float *norm_weight, *norm_bias;
    double norm_eps;
    const void *gate; /* (B, L, D) by gate_stride */
    int64_t gate_stride[2];
    /* Backwards only, with rank 0. grad_y has the strides of y, grad_u those of u, grad_dt those of dt. */
    const void *grad_y;
    void *grad_u, *grad_dt;
    float *grad_A, *grad_skip, *grad_bias; /* shaped as A, skip, bias */
    float *grad_B, *grad_C;                /* (B, L, K, N) */
    float *partial;                        /* scratch of scan_scratch() floats */
} scan_args;

SIZE_OF(scan_args);

/* The step sizes before softplus, for n channels from d on at STEPS positions. */
INLINE void raw_steps(const scan_args *s, dtype type, int64_t b, int64_t k, const int64_t *positions, int64_t d,
                      int64_t n, vec bias, vec *raw) {
    int64_t at[STEPS];
    for (int64_t j = 0; j < STEPS; j++) {
        at[j] = b * s->dt_stride[0] + k * s->dt_stride[1] + positions[j] * s->dt_stride[2];
        raw[j] = s->rank ? bias : bias + load(s->dt, at[j] + d, type, n);
    }
    for (int64_t r = 0; r < s->rank; r++) {
        vec weight = load(s->dt_weight, (k * s->rank + r) * s->width + d, FLOAT32, n);
        for (int64_t j = 0; j < STEPS; j++) raw[j] += weight * ((const float *)s->dt)[at[j] + r];
    }
}

/* sums: L vectors, then N of A and N of the state, which are registers instead if N is 1. */
INLINE void scan_block(const scan_args *s, dtype type, int64_t N, int64_t b, block own, const int64_t n, vec *sums) {
    int64_t d = own.start, K = s->directions, L = s->length;
    int merged = K > 1 && s->y_stride[1] == 0;
    vec single[2], *A = N == 1 ? single : sums + L, *h = A + N;
    for (int64_t k = 0; k < K; k++) {
        vec bias = load(s->bias, k * s->width + d, FLOAT32, n), skip = load(s->skip, k * s->width + d, FLOAT32, n);
        for (int64_t i = 0; i < N; i++) {
            h[i] = splat(0);
            for (int64_t j = 0; j < LANES; j++) A[i][j] = j < n ? s->A[(k * s->width + d + j) * N + i] : 0;
        }
        for (int64_t t = 0; t < L; t += STEPS) {
            int64_t l[STEPS];
            vec delta[STEPS], drive[STEPS], y[STEPS];
            /* Past the end the last step is repeated, and not stored. */
            for (int64_t j = 0; j < STEPS; j++) l[j] = s->order[k * L + smaller(t + j, L - 1)];
            raw_steps(s, type, b, k, l, d, n, bias, delta);
            for (int64_t j = 0; j < STEPS; j++) {
                vec u = load(s->u, b * s->u_stride[0] + k * s->u_stride[1] + l[j] * s->u_stride[2] + d, type, n);
                delta[j] = softplus(delta[j], 0);
                drive[j] = delta[j] * u;
                y[j] = skip * u;
            }
            for (int64_t i = 0; i < N; i++) {
                const float *B = s->B + b * s->B_stride[0] + k * s->B_stride[1] + i * s->B_stride[3];
                const float *C = s->C + b * s->C_stride[0] + k * s->C_stride[1] + i * s->C_stride[3];
                vec decay[STEPS];
                for (int64_t j = 0; j < STEPS; j++) decay[j] = exp_vec(delta[j] * A[i]);
                for (int64_t j = 0; j < STEPS; j++) {
                    h[i] = decay[j] * h[i] + drive[j] * B[l[j] * s->B_stride[2]];
                    y[j] += h[i] * C[l[j] * s->C_stride[2]];
                }
            }
            for (int64_t j = 0; j < smaller(STEPS, L - t); j++) {
                int64_t at = b * s->y_stride[0] + k * s->y_stride[1] + l[j] * s->y_stride[2] + d;
                if (!merged) store(s->y, at, type, own.skip, n, y[j]);
                else if (k == 0) sums[l[j]] = y[j];
                else if (k < K - 1) sums[l[j]] += y[j];
                else store(s->y, at, type, own.skip, n, sums[l[j]] + y[j]);
            }
        }
    }
}

/* Common widths and types are passed as constants, so that the compiler drops the general case. */
CLONED static int scan_forward_task(const scan_args *s, int64_t task) {
    int64_t blocks = blocks_of(s->width), b = task / blocks;
    block own = block_at(s->width, task % blocks);
    vec *sums = vectors(s->length + 2 * s->d_state);
    if (!sums) return 1;
    int common = s->d_state == 1 && own.n == LANES;
    if (s->type == FLOAT32) {
        if (common) scan_block(s, FLOAT32, 1, b, own, LANES, sums);
        else scan_block(s, FLOAT32, s->d_state, b, own, own.n, sums);
    } else {
        if (common) scan_block(s, BFLOAT16, 1, b, own, LANES, sums);
        else scan_block(s, BFLOAT16, s->d_state, b, own, own.n, sums);
    }
    free(sums);
    return 0;
}

INLINE void norm_gate_row(const scan_args *s, dtype type, int64_t b, int64_t l) {
    int64_t D = s->width, at = b * s->y_stride[0] + l * s->y_stride[2];
    int64_t gate_at = b * s->gate_stride[0] + l * s->gate_stride[1];
    vec sum = splat(0), squares = splat(0);
    for (int64_t i = 0; i < blocks_of(D); i++) {
        block own = block_at(D, i);
        sum += own_lanes(load(s->y, at + own.start, type, own.n), own);
    }
    float mean = sum_lanes(sum) / (float)D;
    for (int64_t i = 0; i < blocks_of(D); i++) {
        block own = block_at(D, i);
        vec y = load(s->y, at + own.start, type, own.n) - mean;
        squares += own_lanes(y * y, own);
    }
    float scale = 1 / __builtin_sqrtf(sum_lanes(squares) / (float)D + (float)s->norm_eps);
    for (int64_t i = 0; i < blocks_of(D); i++) {
        block own = block_at(D, i);
        int64_t d = own.start, n = own.n;
        vec y = load(s->y, at + d, type, n) - mean; /* lanes already written belong to the block before */
        vec normed = y * scale * load(s->norm_weight, d, FLOAT32, n) + load(s->norm_bias, d, FLOAT32, n);
        store(s->y, at + d, type, own.skip, n, normed * silu(load(s->gate, gate_at + d, type, n)));
    }
}

CLONED static void norm_gate_task(const scan_args *s, int64_t task) {
    int64_t b = task / s->length, l = task % s->length;
    if (s->type == FLOAT32) norm_gate_row(s, FLOAT32, b, l);
    else norm_gate_row(s, BFLOAT16, b, l);
}

int mobilemamba_scan_forward(const scan_args *s) {
    int64_t tasks = s->batch * blocks_of(s->width), rows = s->batch * s->length;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads((int)s->threads) reduction(| : failed)
    for (int64_t task = 0; task < tasks; task++) failed |= scan_forward_task(s, task);
    if (failed || !s->norm_weight) return failed;
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t row = 0; row < rows; row++) norm_gate_task(s, row);
    return 0;
}

/* What the way back needs of a step. */
typedef struct {
    vec delta, derivative; /* the step size, and its derivative with respect to the raw one */
} step;

INLINE void scan_block_backward(const scan_args *s, dtype type, int64_t N, int64_t b, int64_t k, block own,
                                const int64_t n, step *steps, vec *decays, vec *states, vec *grad_us, vec *grad_Bs, vec *grad_Cs,
                                vec *of_states, float *grad_params) {
    int64_t d = own.start, K = s->directions, L = s->length;
    int merged = K > 1 && s->u_stride[1] == 0;
    const int32_t *order = s->order + k * L;
    const float *B = s->B + b * s->B_stride[0] + k * s->B_stride[1];
    const float *C = s->C + b * s->C_stride[0] + k * s->C_stride[1];
    vec bias = load(s->bias, k * s->width + d, FLOAT32, n), skip = load(s->skip, k * s->width + d, FLOAT32, n);
    vec single[3], *A = N == 1 ? single : of_states, *grad_A = A + N, *grad_h = grad_A + N;
    vec grad_skip = splat(0), grad_bias = splat(0);
    for (int64_t i = 0; i < N; i++) {
        states[i] = grad_A[i] = grad_h[i] = splat(0);
        for (int64_t j = 0; j < LANES; j++) A[i][j] = j < n ? s->A[(k * s->width + d + j) * N + i] : 0;
    }
    for (int64_t t = 0; t < L; t++) {
        int64_t l = order[t];
        vec u = load(s->u, b * s->u_stride[0] + k * s->u_stride[1] + l * s->u_stride[2] + d, type, n);
        vec raw = load(s->dt, b * s->dt_stride[0] + k * s->dt_stride[1] + l * s->dt_stride[2] + d, type, n);
        vec delta = softplus(bias + raw, &steps[t].derivative);
        steps[t].delta = delta;
        for (int64_t i = 0; i < N; i++) {
            vec decay = exp_vec(delta * A[i]);
            decays[t * N + i] = decay;
            float Bl = B[l * s->B_stride[2] + i * s->B_stride[3]];
            states[(t + 1) * N + i] = decay * states[t * N + i] + delta * u * Bl;
        }
    }
    for (int64_t t = L - 1; t >= 0; t--) {
        int64_t l = order[t];
        int64_t u_at = b * s->u_stride[0] + k * s->u_stride[1] + l * s->u_stride[2] + d;
        const float *Bl = B + l * s->B_stride[2], *Cl = C + l * s->C_stride[2];
        vec u = load(s->u, u_at, type, n), delta = steps[t].delta;
        vec grad_y = load(s->grad_y, b * s->y_stride[0] + k * s->y_stride[1] + l * s->y_stride[2] + d, type, n);
        grad_y = own_lanes(grad_y, own); /* channels of the block before add nothing */
        vec grad_delta = splat(0), grad_drive = splat(0); /* of delta through the decay; of delta * u */
        for (int64_t i = 0; i < N; i++) {
            vec g = grad_h[i] + grad_y * Cl[i * s->C_stride[3]];
            grad_Cs[l * N + i] += grad_y * states[(t + 1) * N + i];
            grad_Bs[l * N + i] += g * (delta * u);
            grad_drive += g * Bl[i * s->B_stride[3]];
            grad_h[i] = g * decays[t * N + i]; /* gradient of the state before this step */
            vec grad_exponent = grad_h[i] * states[t * N + i];
            grad_delta += grad_exponent * A[i];
            grad_A[i] += grad_exponent * delta;
        }
        vec grad_raw = (grad_delta + grad_drive * u) * steps[t].derivative;
        vec grad_u = grad_drive * delta + skip * grad_y;
        grad_bias += grad_raw;
        grad_skip += grad_y * u;
        store(s->grad_dt, b * s->dt_stride[0] + k * s->dt_stride[1] + l * s->dt_stride[2] + d, type, own.skip, n,
              grad_raw);
        if (!merged) store(s->grad_u, u_at, type, own.skip, n, grad_u);
        else if (k == 0) grad_us[l] = grad_u;
        else if (k < K - 1) grad_us[l] += grad_u;
        else store(s->grad_u, u_at, type, own.skip, n, grad_us[l] + grad_u);
    }
    for (int64_t j = own.skip; j < n; j++) { /* (K, D, N + 2): A, skip, bias */
        float *to = grad_params + ((b * K + k) * s->width + d + j) * (N + 2);
        for (int64_t i = 0; i < N; i++) to[i] = grad_A[i][j];
        to[N] = grad_skip[j];
        to[N + 1] = grad_bias[j];
    }
}

INLINE int64_t groups_of(const scan_args *s) { return (blocks_of(s->width) + GROUP - 1) / GROUP; }

int64_t mobilemamba_scan_scratch(const scan_args *s) {
    int64_t over_channels = 2 * groups_of(s) * s->length * s->d_state, over_steps = s->width * (s->d_state + 2);
    return s->batch * s->directions * (over_channels + over_steps);
}

/* partial: (B, K, D, N + 2) sums over steps, then (2, groups, B, L, K, N) sums over a group's channels, for B and C. */
CLONED static int scan_backward_task(const scan_args *s, int64_t task) {
    int64_t K = s->directions, L = s->length, N = s->d_state, groups = groups_of(s);
    int64_t b = task / groups, group = task % groups;
    int64_t size = s->batch * L * K * N;
    float *grad_params = s->partial, *of_B = grad_params + s->batch * K * s->width * (N + 2) + group * size;
    float *of_C = of_B + groups * size;
    step *steps = (step *)vectors(L * 2 + L * N + (L + 1) * N + GROUP * L + 2 * L * N + 3 * N);
    if (!steps) return 1;
    vec *decays = (vec *)(steps + L), *states = decays + L * N, *grad_us = states + (L + 1) * N;
    vec *grad_Bs = grad_us + GROUP * L, *grad_Cs = grad_Bs + L * N, *of_states = grad_Cs + L * N;
    for (int64_t k = 0; k < K; k++) {
        for (int64_t i = 0; i < 2 * L * N; i++) grad_Bs[i] = splat(0);
        for (int64_t i = group * GROUP; i < smaller((group + 1) * GROUP, blocks_of(s->width)); i++) {
            block own = block_at(s->width, i);
            vec *us = grad_us + i % GROUP * L;
            int common = N == 1 && own.n == LANES;
#define BACKWARD(type, N, n) \
    scan_block_backward(s, type, N, b, k, own, n, steps, decays, states, us, grad_Bs, grad_Cs, of_states, grad_params)
            if (s->type == FLOAT32) {
                if (common) BACKWARD(FLOAT32, 1, LANES);
                else BACKWARD(FLOAT32, N, own.n);
            } else {
                if (common) BACKWARD(BFLOAT16, 1, LANES);
                else BACKWARD(BFLOAT16, N, own.n);
            }
        }
        for (int64_t l = 0; l < L; l++)
            for (int64_t i = 0; i < N; i++) {
                of_B[((b * L + l) * K + k) * N + i] = sum_lanes(grad_Bs[l * N + i]);
                of_C[((b * L + l) * K + k) * N + i] = sum_lanes(grad_Cs[l * N + i]);
            }
    }
    free(steps);
    return 0;
}

int mobilemamba_scan_backward(const scan_args *s) {
    int64_t groups = groups_of(s), N = s->d_state, rows = s->directions * s->width, size = s->batch * s->length * s->directions * N;
    const float *of_params = s->partial, *of_B = of_params + s->batch * rows * (N + 2), *of_C = of_B + groups * size;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads((int)s->threads) reduction(| : failed)
    for (int64_t task = 0; task < s->batch * groups; task++) failed |= scan_backward_task(s, task);
    if (failed) return 1;
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < N + 2; i++) {
            float sum = 0;
            for (int64_t b = 0; b < s->batch; b++) sum += of_params[(b * rows + row) * (N + 2) + i];
            if (i < N) s->grad_A[row * N + i] = sum;
            else if (i == N) s->grad_skip[row] = sum;
            else s->grad_bias[row] = sum;
        }
    }
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t i = 0; i < size; i++) {
        float sum_B = 0, sum_C = 0;
        for (int64_t group = 0; group < groups; group++) {
            sum_B += of_B[group * size + i];
            sum_C += of_C[group * size + i];
        }
        s->grad_B[i] = sum_B;
        s->grad_C[i] = sum_C;
    }
    return 0;
}
