variable "vm_name" {
  type        = string
  default     = "golden"
  description = "Name of the VM in Tart."
}

variable "release" {
  type        = number
  description = "Major version of macOS that is installed: 27 or 26. It selects what is typed into Setup Assistant."
}

variable "ipsw" {
  type        = string
  description = "Address or path of Apple's restore image, or latest."

  validation {
    condition     = length(var.ipsw) > 0
    error_message = "The value of ipsw must be the address or the path of a restore image, or latest."
  }
}

variable "provisioning" {
  type        = bool
  default     = false
  description = "Let Tart set up the first user (Tart 2.33, macOS 27 on host and guest) instead of typing into Setup Assistant."
}

variable "cpus" {
  type    = number
  default = 4
}

variable "memory_gb" {
  type    = number
  default = 8
}

variable "disk_gb" {
  type    = number
  default = 80
}

variable "disk_format" {
  type        = string
  default     = "raw"
  description = "raw, or asif for hosts with macOS 26 or later."
}

variable "admin_user" {
  type        = string
  default     = "admin"
  description = "The user that Setup Assistant makes. It builds the image; jobs do not run as this user."
}

variable "admin_password" {
  type        = string
  sensitive   = true
  description = "Set it in the environment: PKR_VAR_admin_password. Letters and digits only, because it is typed."

  validation {
    condition     = length(regexall("^[A-Za-z0-9]{4,64}$", var.admin_password)) == 1
    error_message = "The value of admin_password must be 4 to 64 letters and digits."
  }
}

variable "runner_user" {
  type        = string
  default     = "runner"
  description = "The standard user of the jobs, who is logged in at the screen when a vm starts."
}

variable "runner_password" {
  type        = string
  sensitive   = true
  description = "Set it in the environment: PKR_VAR_runner_password. The image stores it in a form that can be read back."

  validation {
    condition     = length(var.runner_password) >= 4
    error_message = "The value of runner_password must have at least 4 characters."
  }
}

variable "ssh_authorized_key" {
  type        = string
  default     = ""
  description = "Public key with which Mayfly logs in over SSH. Empty: the password."
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

variable "homebrew_version" {
  type        = string
  description = "Version of Homebrew's installer package. Tart's guest agent is installed with Homebrew."
}

variable "homebrew_sha256" {
  type        = string
  description = "Checksum of Homebrew-VERSION.pkg."
}

variable "brew_packages" {
  type        = string
  default     = ""
  description = "Formulae that your jobs need, separated by spaces."
}

variable "shell_exports" {
  type        = string
  default     = ""
  description = "Lines for ~/.zshenv, such as export LANG=en_US.UTF-8."
}

variable "xcode_xip" {
  type        = string
  default     = ""
  description = "Path of an archive of Xcode on this machine. Empty: none is installed."
}

variable "xcode_platforms" {
  type        = string
  default     = ""
  description = "Platforms whose simulators are downloaded, separated by spaces, such as iOS."
}
