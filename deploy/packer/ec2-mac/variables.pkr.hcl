variable "region" {
  type = string
}

variable "macos" {
  type        = string
  default     = "26"
  description = "Release of macOS whose newest AMI is the base."
}

variable "instance_type" {
  type        = string
  default     = "mac2.metal"
  description = "Must match an allocated Dedicated Host. Each host is billed for at least 24 hours, also for this build."
}

variable "subnet_id" {
  type        = string
  default     = ""
  description = "Subnet in the Availability Zone of the Dedicated Host. Empty: the default subnet."
}

variable "ami_name" {
  type    = string
  default = "mayfly"
}

variable "root_gb" {
  type        = number
  default     = 200
  description = "Size of the AMI's root volume. An instance may have a larger one: the first boot grows the file system."
}

variable "mayfly_archive" {
  type        = string
  description = "Path of a release archive for Macs: mayfly-VERSION-aarch64-apple-darwin.tar.gz."
}

variable "mayfly_config" {
  type        = string
  default     = ""
  description = "Path of a mayfly.toml without secrets. It is used from the moment when the template has passed its test."
}

variable "template_image" {
  type        = string
  description = "Image of the template, such as 123456789012.dkr.ecr.eu-central-1.amazonaws.com/macos:latest."
}

variable "template_name" {
  type    = string
  default = "macos"
}

variable "smoke" {
  type        = string
  default     = "/usr/bin/sw_vers && test -x ~/actions-runner/run.sh"
  description = "Commands that must succeed in a vm of the template before jobs get it: the canary."
}
