# A Linux template: a disk with cloud-init or Mayfly's seed service, a user for jobs, and what jobs need. build.sh runs this,
# and writes template.json beside the disk.

locals {
  machine = var.arch == "aarch64" ? "virt" : "q35"
  console = var.arch == "aarch64" ? "ttyAMA0" : "ttyS0"
  # The kernel of an emulated x86-64 guest panics if the host was too busy when it tested its timer.
  no_timer_check = var.arch == "aarch64" ? "" : " no_timer_check"
  direct_boot = var.kernel == "" ? [] : [
    ["-kernel", var.kernel],
    ["-initrd", var.initramfs],
    ["-append", "${var.cmdline} console=${local.console}${local.no_timer_check}"],
  ]
  scripts = [
    "${path.root}/../scripts/linux/packages.sh",
    "${path.root}/../scripts/linux/runner-user.sh",
    "${path.root}/../scripts/github-runner.sh",
    "${path.root}/../scripts/linux/guest.sh",
    "${path.root}/../scripts/linux/seal.sh",
  ]
}

source "qemu" "linux" {
  iso_url          = var.image
  iso_checksum     = var.image_checksum
  disk_image       = true
  disk_size        = var.disk_size
  format           = "qcow2"
  disk_interface   = "virtio"
  disk_cache       = "unsafe"
  disk_discard     = "unmap" # or the blocks of what seal.sh removes stay in the image
  net_device       = "virtio-net"
  accelerator      = var.accelerator
  machine_type     = local.machine
  qemu_binary      = "qemu-system-${var.arch}"
  cpus             = 2
  memory           = 2048
  headless         = true
  output_directory = var.output
  vm_name          = "disk.qcow2"
  http_directory   = var.seed
  # No keys are sent over VNC. The build would fail on a busy machine where QEMU listens for it later than boot_wait.
  disable_vnc = true
  boot_wait   = "1s"

  ssh_username         = "root"
  ssh_private_key_file = var.ssh_private_key_file
  ssh_timeout          = var.ssh_timeout
  shutdown_command     = "poweroff"
  shutdown_timeout     = "10m"

  # Read by cloud-init; a disk without it has its key already.
  qemuargs = concat([
    ["-cpu", var.accelerator == "tcg" ? "max" : "host"],
    ["-smbios", "type=1,serial=ds=nocloud;s=http://{{ .HTTPIP }}:{{ .HTTPPort }}/"],
    ["-serial", "file:${var.output}.console"],
    ["-display", "none"],
  ], local.direct_boot)
}

build {
  sources = ["source.qemu.linux"]

  provisioner "shell" {
    # As by hand: sudo RUNNER_USER=runner sh packages.sh
    execute_command = "{{ .Vars }} sh {{ .Path }}"
    environment_vars = [
      "RUNNER_USER=${var.runner_user}",
      "PACKAGES=${var.packages}",
      "RUNNER_VERSION=${var.runner_version}",
      "RUNNER_SHA256=${var.runner_sha256}",
    ]
    scripts = var.passes == 1 ? local.scripts : concat(local.scripts, local.scripts)
  }
}
