# A macOS template for Tart, from Apple's restore image to a VM that `mayfly template add NAME --vm-dir ~/.tart/vms/NAME` takes.
# It runs on a Mac with Apple silicon:
#
#   PKR_VAR_admin_password=… PKR_VAR_runner_password=… packer build -var-file=macos-26.pkrvars.hcl .

locals {
  provisioning_options = join(",", [
    "fullName=${var.admin_user}",
    "username=${var.admin_user}",
    "password=${var.admin_password}",
    "logsInAutomatically=true",
    "enablesRemoteLogin=true",
  ])
  xcode_in_guest = "/private/var/tmp/mayfly-xcode.xip"
}

source "tart-cli" "macos" {
  from_ipsw    = var.ipsw
  vm_name      = var.vm_name
  cpu_count    = var.cpus
  memory_gb    = var.memory_gb
  disk_size_gb = var.disk_gb
  disk_format  = var.disk_format
  headless     = true
  boot_command = local.boot_command

  # macOS is not updated in a vm: without its recovery partition, the disk can be made larger. asif needs it.
  recovery_partition = var.disk_format == "asif" ? "keep" : "delete"

  # The installation goes on for a moment after it reports its end.
  create_grace_time = "30s"
  run_extra_args    = var.provisioning ? ["--provisioning-opts=${local.provisioning_options}"] : []

  ssh_username = var.admin_user
  ssh_password = var.admin_password
  ssh_timeout  = "10m"
}

build {
  sources = ["source.tart-cli.macos"]

  # sudo without a password for the rest of the build; seal.sh takes it away.
  provisioner "shell" {
    use_env_var_file = true
    environment_vars = ["ADMIN_PASSWORD=${var.admin_password}"]
    inline = [
      "printf '%s\\n' \"$ADMIN_PASSWORD\" | sudo -S sh -c 'umask 0227; mkdir -p /private/etc/sudoers.d; echo \"${var.admin_user} ALL=(ALL) NOPASSWD: ALL\" >/private/etc/sudoers.d/${var.admin_user}-nopasswd'",
    ]
  }

  # An empty file stands for no archive.
  provisioner "file" {
    source      = var.xcode_xip == "" ? "/dev/null" : var.xcode_xip
    destination = local.xcode_in_guest
  }

  provisioner "shell" {
    # As by hand, in a root shell: RUNNER_USER=runner sh quiet.sh. The variables go through a file, so that no password is an
    # argument of a process.
    use_env_var_file = true
    execute_command  = "chmod +x {{ .Path }}; . {{ .EnvVarFile }} && sudo -E sh {{ .Path }}"
    environment_vars = [
      "BUILD_USER=${var.admin_user}",
      "RUNNER_USER=${var.runner_user}",
      "RUNNER_PASSWORD=${var.runner_password}",
      "SSH_AUTHORIZED_KEY=${var.ssh_authorized_key}",
      "SHELL_EXPORTS=${var.shell_exports}",
      "HOMEBREW_VERSION=${var.homebrew_version}",
      "HOMEBREW_SHA256=${var.homebrew_sha256}",
      "BREW_PACKAGES=${var.brew_packages}",
      "RUNNER_VERSION=${var.runner_version}",
      "RUNNER_SHA256=${var.runner_sha256}",
      "XCODE_XIP=${var.xcode_xip == "" ? "" : local.xcode_in_guest}",
      "XCODE_PLATFORMS=${var.xcode_platforms}",
    ]
    scripts = [
      "${path.root}/../scripts/macos/runner-user.sh",
      "${path.root}/../scripts/macos/remote-login.sh",
      "${path.root}/../scripts/macos/auto-login.sh",
      "${path.root}/../scripts/macos/quiet.sh",
      "${path.root}/../scripts/macos/shell-environment.sh",
      "${path.root}/../scripts/macos/homebrew.sh",
      "${path.root}/../scripts/macos/guest-agent.sh",
      "${path.root}/../scripts/github-runner.sh",
      "${path.root}/../scripts/macos/xcode.sh",
      "${path.root}/../scripts/macos/seal.sh",
    ]
  }
}
