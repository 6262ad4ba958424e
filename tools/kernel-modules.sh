#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The vDPA modules for the kernel of the test machines, below build/unpacked/lib/modules/VERSION/extra: those that the
# distribution's kernel lacks, built out of its own source package. Nothing is installed and no root is needed. Under a
# minute of work and 150 MB of packages, once: the result is kept as long as the kernel is. Debian's kernels are made
# without CONFIG_VDPA, and without what selects CONFIG_VHOST_RING, but export all that these modules need.
#
# Linux before 6.10 has VDUSE for block devices only. Two lists of allowed devices get the network device as well; its
# feature check knows network devices already.
set -euo pipefail
cd "$(dirname "$0")/.."

unpacked=build/unpacked
modules="vringh vdpa vdpa_sim vdpa_sim_net vhost_vdpa virtio_vdpa vduse vp_vdpa"

module=$(find "$unpacked/lib/modules" -name '9pnet_virtio.ko*' 2>/dev/null | sort | tail -n 1)
[ -n "$module" ] || { echo "kernel-modules: no kernel for test machines; tools/setup.sh test fetches it" >&2; exit 1; }
version=${module#"$unpacked/lib/modules/"}
version=${version%%/*}
shipped=$unpacked/lib/modules/$version
extra=$shipped/extra
series=$(echo "$version" | cut -d. -f1,2) # 6.1
old_vduse=$([ "$(printf '%s\n' "$series" 6.10 | sort -V | head -n 1)" = 6.10 ] || echo vduse)
# Modules that are not below a folder of the kernel's modules; those of the package lie in kernel, ours in extra.
missing_in() {
  local module
  for module in $modules; do
    [ "$module" != "$old_vduse" ] || [ "$1" != kernel ] || { echo "$module"; continue; }
    [ -n "$(find "$shipped/$1" -name "$module.ko*" -o -name "${module//_/-}.ko*" 2>/dev/null | head -n 1)" ] || echo "$module"
  done
}
# One that both lack.
missing() { comm -12 <(missing_in kernel | sort) <(missing_in extra | sort); }
[ -n "$(missing)" ] || exit 0
wanted=$(missing_in kernel) # all at once: they need each other's symbols

work=build/kernel-modules
rm -rf $work
mkdir -p $work
chmod 755 $work
cd $work
common=$(echo "$version" | sed 's/^\([0-9.]*-[0-9]*\)-.*/\1/') # 6.1.0-56
fetch() { apt-get download -q "linux-source-$series" "linux-headers-$version" "linux-headers-$common-common" "linux-kbuild-$series"; }
fetch >download.log 2>&1 || { [ "$(id -u)" = 0 ] && apt-get update -q >>download.log 2>&1 && fetch >>download.log 2>&1; } || {
  tail -n 3 download.log >&2
  echo "kernel-modules: cannot fetch the source and headers of $version; if the archive has a newer kernel by now," \
    "remove $unpacked/boot and $unpacked/lib/modules and run tools/setup.sh test" >&2
  exit 1
}
for package in linux-headers-*.deb linux-kbuild-*.deb; do dpkg -x "$package" root; done
# Only what is needed of 1.3 GB.
dpkg --fsys-tarfile linux-source-*.deb | tar -xO "./usr/src/linux-source-$series.tar.xz" | xz -dcT0 |
  tar -x "linux-source-$series/drivers/vdpa" "linux-source-$series/drivers/vhost" "linux-source-$series/drivers/virtio"
rm -f ./*.deb

drivers=linux-source-$series/drivers
headers=$PWD/root/usr/src/linux-headers-$version
mkdir build
cp $drivers/vdpa/vdpa.c $drivers/vdpa/vdpa_sim/*.[ch] $drivers/vdpa/vdpa_user/*.[ch] $drivers/vdpa/virtio_pci/*.[ch] build
cp $drivers/vhost/vhost.h $drivers/vhost/vringh.c $drivers/virtio/virtio_vdpa.c build
cp $drivers/vhost/vdpa.c build/vhost_vdpa.c
if ! grep -q 'VIRTIO_ID_NET,$' build/vduse_dev.c; then
  sed -i -e 's/^\tVIRTIO_ID_BLOCK,$/&\n\tVIRTIO_ID_NET,/' \
    -e 's/^\t{ VIRTIO_ID_BLOCK, VIRTIO_DEV_ANY_ID },$/&\n\t{ VIRTIO_ID_NET, VIRTIO_DEV_ANY_ID },/' build/vduse_dev.c
  [ "$(grep -c VIRTIO_ID_NET build/vduse_dev.c)" -ge 2 ] || { echo "kernel-modules: vduse of $version looks unknown" >&2; exit 1; }
fi
{
  echo "obj-m := $(for module in $wanted; do printf '%s.o ' "$module"; done)"
  echo "vduse-y := vduse_dev.o iova_domain.o"
} >build/Kbuild
# The headers name their neighbours by the place where a package would put them.
sed -i "s,/usr/src,$PWD/root/usr/src," "$headers/Makefile"
compiler=$(sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\) .*/\1/p' "$headers/.config") # the kernel's own: gcc-12
command -v "$compiler" >/dev/null || { echo "kernel-modules: no $compiler: apt-get install $compiler" >&2; exit 1; }
make -s -C "$headers" M="$PWD/build" "CC=$compiler" -j"$(nproc)" modules >make.log 2>&1 ||
  { tail -n 20 make.log >&2; exit 1; }
strip -g build/*.ko
cd ../..
mkdir -p "$extra"
mv $work/build/*.ko "$extra"
rm -rf $work
wanted=$(missing)
[ -z "$wanted" ] || { echo "kernel-modules: not built: $wanted" >&2; exit 1; }
