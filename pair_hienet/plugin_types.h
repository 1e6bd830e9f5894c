// SPDX-License-Identifier: GPL-2.0-or-later
// The types that LAMMPS' `plugin` command expects. Not every installation of LAMMPS comes with its lammpsplugin.h.

#ifndef HIENET_PLUGIN_TYPES_H
#define HIENET_PLUGIN_TYPES_H

extern "C" {
typedef void *(lammpsplugin_factory1) (void *);
typedef void *(lammpsplugin_factory2) (void *, int, char **);

typedef struct {
  const char *version;
  const char *style;
  const char *name;
  const char *info;
  const char *author;
  union {
    lammpsplugin_factory1 *v1;
    lammpsplugin_factory2 *v2;
  } creator;
  void *handle;
} lammpsplugin_t;

typedef void (*lammpsplugin_regfunc)(lammpsplugin_t *, void *);
}

#endif
