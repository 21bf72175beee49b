# An AMI for EC2 Mac instances that become hosts of Mayfly by themselves. scripts/ec2-mac/first-boot.sh says what happens when
# one starts.
#
#   packer build -var region=eu-central-1 -var mayfly_archive=… -var template_image=… .
#
# Launch instances with a role that may read the image from ECR, and with a hop limit of 1 for the metadata service: guests could
# use the role otherwise.

locals {
  upload = "/private/var/tmp/mayfly-upload"
}

source "amazon-ebs" "mac" {
  region                  = var.region
  subnet_id               = var.subnet_id
  instance_type           = var.instance_type
  tenancy                 = "host"
  ami_name                = "${var.ami_name}-macos-${var.macos}-{{ timestamp }}"
  ami_virtualization_type = "hvm"
  ebs_optimized           = true

  source_ami_filter {
    filters = {
      name                = "amzn-ec2-macos-${var.macos}.*-arm64"
      root-device-type    = "ebs"
      virtualization-type = "hvm"
      architecture        = "arm64_mac"
    }
    owners      = ["amazon"]
    most_recent = true
  }

  launch_block_device_mappings {
    device_name           = "/dev/sda1"
    volume_size           = var.root_gb
    volume_type           = "gp3"
    iops                  = 3000
    throughput            = 125
    delete_on_termination = true
  }

  # A Mac needs up to twenty minutes to its first login, and hours to be scrubbed after its end.
  ssh_username = "ec2-user"
  ssh_timeout  = "2h"
  aws_polling {
    delay_seconds = 60
    max_attempts  = 240
  }
}

build {
  sources = ["source.amazon-ebs.mac"]

  provisioner "shell" {
    inline = ["rm -rf ${local.upload} && mkdir -m 0700 ${local.upload}"]
  }

  provisioner "file" {
    source      = "${path.root}/../scripts/ec2-mac/"
    destination = local.upload
  }

  provisioner "file" {
    source      = var.mayfly_archive
    destination = "${local.upload}/mayfly.tar.gz"
  }

  # An empty file stands for no settings.
  provisioner "file" {
    source      = var.mayfly_config == "" ? "/dev/null" : var.mayfly_config
    destination = "${local.upload}/mayfly.toml"
  }

  provisioner "shell" {
    use_env_var_file = true
    execute_command  = "chmod +x {{ .Path }}; . {{ .EnvVarFile }} && sudo -E sh {{ .Path }}"
    environment_vars = [
      "HOST_USER=ec2-user",
      "UPLOAD=${local.upload}",
      "TEMPLATE_IMAGE=${var.template_image}",
      "TEMPLATE_NAME=${var.template_name}",
      "SMOKE=${var.smoke}",
    ]
    scripts = ["${path.root}/../scripts/ec2-mac/install.sh"]
  }

  provisioner "shell" {
    inline = ["rm -rf ${local.upload}"]
  }
}
