variable "image" {
  type        = string
  description = "The disk to begin with: path or address of a cloud image, or of what debian-base.sh made."
}

variable "image_checksum" {
  type        = string
  default     = "none"
  description = "Such as sha512:…, or file: with the address of a list. Give one for everything that is downloaded."
}

variable "kernel" {
  type        = string
  default     = ""
  description = "Path of a kernel, if the disk has no boot loader. The template then boots with it, too."
}

variable "initramfs" {
  type        = string
  default     = ""
  description = "Path of that kernel's initramfs."
}

variable "cmdline" {
  type        = string
  default     = "root=/dev/vda ro quiet"
  description = "Command line of that kernel, without the console, which build.sh adds."
}

variable "arch" {
  type        = string
  default     = "x86_64"
  description = "x86_64 or aarch64: that of the machine which builds it."
}

variable "accelerator" {
  type        = string
  default     = "kvm"
  description = "kvm, hvf, or tcg for a machine that has neither."
}

variable "disk_size" {
  type    = string
  default = "20G"
}

variable "ssh_private_key_file" {
  type        = string
  description = "The key with which root logs in during the build. The template does not accept it."
}

variable "ssh_timeout" {
  type    = string
  default = "15m"
}

variable "seed" {
  type        = string
  description = "Directory with user-data, meta-data, vendor-data and network-config for cloud-init, served to the guest during the build."
}

variable "output" {
  type        = string
  description = "Directory that gets disk.qcow2. It must not exist."
}

variable "runner_user" {
  type        = string
  default     = "runner"
  description = "User of the jobs. It is made without a way to become root."
}

variable "packages" {
  type        = string
  default     = ""
  description = "Packages that your jobs need, separated by spaces."
}

variable "runner_version" {
  type        = string
  default     = ""
  description = "Version of GitHub's runner, such as 2.336.0. Empty: none is installed."
}

variable "runner_sha256" {
  type        = string
  default     = ""
  description = "Its checksum, from the notes of its release."
}

variable "passes" {
  type        = number
  default     = 1
  description = "2 runs every script twice. The result is the same; a test uses it."
}
