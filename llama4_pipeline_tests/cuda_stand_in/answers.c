/* What CUDA's runtime answers on an H200, as far as ONNX Runtime looks; memory is the host's and kernels do nothing.
   Compiled behind `struct cudaDeviceProp` of the real header. */
#include <stdlib.h>
#include <string.h>

#define GIB (1ull << 30)
enum { MULTIPROCESSORS = 132, SHARED_OPTIN = 232448, SHARED_SM = 233472, REGISTERS = 65536, L2 = 60 << 20 };

static int capturing;
int stand_in_graphs_launched, stand_in_unfit_calls_captured;
static void is_no_part_of_a_capture(void) { stand_in_unfit_calls_captured += capturing; }

static int allocate(void **memory, size_t bytes) {
  is_no_part_of_a_capture();
  *memory = aligned_alloc(512, (bytes + 511) / 512 * 512);
  return *memory ? 0 : 2;
}
static int release(void *memory) {
  is_no_part_of_a_capture();
  free(memory);
  return 0;
}
static int nothing(void) { return 0; }

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = 130 * GIB; *total = 140 * GIB; return 0; }

int cudaGetDeviceProperties(struct cudaDeviceProp *device, int number) {
  memset(device, 0, sizeof *device);
  strcpy(device->name, "stand-in for an H200");
  device->major = 9;
  device->totalGlobalMem = 140 * GIB;
  device->multiProcessorCount = MULTIPROCESSORS;
  device->maxBlocksPerMultiProcessor = 32;
  device->maxThreadsPerMultiProcessor = 2048;
  device->maxThreadsPerBlock = device->maxThreadsDim[0] = device->maxThreadsDim[1] = 1024;
  device->maxThreadsDim[2] = 64;
  device->maxGridSize[0] = 2147483647;
  device->maxGridSize[1] = device->maxGridSize[2] = 65535;
  device->warpSize = 32;
  device->regsPerBlock = device->regsPerMultiprocessor = REGISTERS;
  device->sharedMemPerBlock = 49152;
  device->sharedMemPerBlockOptin = SHARED_OPTIN;
  device->sharedMemPerMultiprocessor = SHARED_SM;
  device->l2CacheSize = L2;
  return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) { /* enum cudaDeviceAttr */
  switch (attribute) {
    case 1: *value = 1024; break;             /* threads of a block */
    case 8: *value = 49152; break;            /* shared memory of a block */
    case 10: *value = 32; break;              /* warp */
    case 12: *value = REGISTERS; break;
    case 16: *value = MULTIPROCESSORS; break;
    case 38: *value = L2; break;
    case 39: *value = 2048; break;            /* threads of a multiprocessor */
    case 75: *value = 9; break;               /* compute capability 9.0 */
    case 76: *value = 0; break;
    case 81: *value = SHARED_SM; break;
    case 97: *value = SHARED_OPTIN; break;
    default: *value = 1;
  }
  return 0;
}

int cudaMalloc(void **memory, size_t bytes) {
  int failed = allocate(memory, bytes);
  if (!failed) memset(*memory, 0, bytes);
  return failed;
}
int cudaMallocHost(void **memory, size_t bytes) { return allocate(memory, bytes); }
int cudaHostAlloc(void **memory, size_t bytes, unsigned flags) { return allocate(memory, bytes); }
int cudaMallocFromPoolAsync(void **memory, size_t bytes, void *pool, void *stream) { return allocate(memory, bytes); }
int cudaFree(void *memory) { return release(memory); }
int cudaFreeHost(void *memory) { return release(memory); }
int cudaFreeAsync(void *memory, void *stream) { return release(memory); }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
  is_no_part_of_a_capture();
  memmove(to, from, bytes);
  return 0;
}
int cudaStreamBeginCapture(void *stream, int mode) { capturing = 1; return 0; }
int cudaStreamEndCapture(void *stream, void **graph) { capturing = 0; *graph = calloc(1, 64); return 0; }
int cudaGraphInstantiate(void **made, void *graph, unsigned long long flags) { *made = calloc(1, 64); return 0; }
int cudaGraphLaunch(void *graph, void *stream) { stand_in_graphs_launched++; return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  if (kind != 3) is_no_part_of_a_capture(); /* 3: from the device to the device; another reads the host at each replay */
  memmove(to, from, bytes);
  return 0;
}
int cudaMemset(void *to, int value, size_t bytes) { memset(to, value, bytes); return 0; }
int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream) { memset(to, value, bytes); return 0; }
int cudaPointerGetAttributes(int *attributes, const void *pointer) {
  memset(attributes, 0, 32);
  attributes[0] = 2; /* memory of the device */
  return 0;
}

int cudaEventElapsedTime(float *ms, void *start, void *end) { *ms = 1; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = capturing; return 0; }
int cudaStreamSynchronize(void *stream) { is_no_part_of_a_capture(); return 0; }
int cudaStreamQuery(void *stream) { is_no_part_of_a_capture(); return 0; }
int cudaDeviceSynchronize(void) { is_no_part_of_a_capture(); return 0; }
int cudaEventSynchronize(void *event) { is_no_part_of_a_capture(); return 0; }
int cudaEventQuery(void *event) { is_no_part_of_a_capture(); return 0; }
int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t bytes, size_t offset, int kind) {
  is_no_part_of_a_capture();
  memset(to, 0, bytes);
  return 0;
}
int cudaFuncGetAttributes(int *attributes, const void *kernel) { /* three sizes, then threads and registers */
  memset(attributes, 0, 64);
  attributes[6] = 1024;
  attributes[7] = 64;
  return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int threads, size_t shared,
                                                           unsigned flags) {
  *blocks = 2;
  return 0;
}
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags,
                                     int *status) {
  *function = (void *)nothing;
  if (status) *status = 0;
  return 0;
}
void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 64); }
int __cudaPushCallConfiguration(void) { return 1; } /* a launch that failed is not called */

int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d, void *wish,
                                   int asked, void *found, int *count) {
  memset(found, 0, 96);
  *count = 1;
  return 0;
}
