# Packer before 1.7 has these plugins built in and refuses this file: build.sh leaves it out for them.
packer {
  required_version = ">= 1.7.0"

  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.1.0"
    }
  }
}
