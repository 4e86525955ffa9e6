// What the sets of kernels, one for each instruction set, have in common.
#pragma once

struct Kernel {
  const char *name;
  void (*range)(const void *arguments, long long first, long long last);  // neurons
  unsigned long size;                                                     // of the arguments
};

struct KernelTable {
  const Kernel *kernels;
  int count;
  long long lanes;
  long long (*silence)(void *steps, long long first, long long count, int settle);  // silence.h
  unsigned long silent_step;  // bytes
};
