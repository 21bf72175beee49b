# What is typed into Setup Assistant, by release of macOS, until the first user exists and accepts logins over SSH. Every line is
# one screen. The screens change between releases, and sometimes between minor ones: if a build waits for SSH until its timeout,
# run it with headless = false, see which screen it stands at, and correct the line.
#
# Keys: Voice Over has to be on for the tab key to reach every control, <leftAltOn><f5><leftAltOff> switches it. A shift+tab goes
# backwards from the first control to the last one, which is the button that continues.

locals {
  continue    = "<wait10s><leftShiftOn><tab><leftShiftOff><spacebar>"
  quit        = "<wait10s><leftAltOn>q<leftAltOff>"
  spotlight   = "<wait10s><leftAltOn><spacebar><leftAltOff>"
  menu_search = "<wait10s><leftCtrlOn><f2><leftCtrlOff><right><right><right><down>"
  password    = var.admin_password
  voice_over  = "<leftAltOn><f5><leftAltOff>"

  # In a terminal: sshd is loaded by launchd. It needs no permission that only System Settings could give.
  terminal = [
    "${local.spotlight}Terminal<wait10s><enter>",
    "<wait10s>sudo launchctl enable system/com.openssh.sshd<enter><wait5s>${local.password}<enter>",
    "<wait5s>sudo launchctl bootstrap system /System/Library/LaunchDaemons/ssh.plist<enter>",
    local.quit,
  ]

  account_26 = "<tab><tab><tab><tab><tab><tab>${var.admin_user}<tab>${var.admin_user}<tab>${local.password}<tab>${local.password}<tab><tab><spacebar><tab><tab><spacebar>"

  setup_26 = [
    # Hello, in all languages
    "<wait60s><spacebar>",
    # Language: typing "english" with English selected would go to the next one that begins so. So another one is selected first.
    "<wait30s>italiano<esc>english<enter>",
    # Country or region
    "<wait60s>united states<leftShiftOn><tab><leftShiftOff><spacebar>",
    # Transfer of data: not now
    "<wait10s><tab><tab><tab><spacebar><tab><tab><spacebar>",
    # Written and spoken languages, accessibility, data and privacy
    local.continue,
    local.continue,
    local.continue,
    # The account
    "<wait10s>${local.account_26}",
    # Voice Over on, when the account exists
    "<wait120s>${local.voice_over}",
    # No Apple account; sure
    local.continue,
    "<wait10s><tab><spacebar>",
    # The licence; agreed
    local.continue,
    "<wait10s><tab><spacebar>",
    # No location services; sure
    local.continue,
    "<wait10s><tab><spacebar>",
    # Time zone
    "<wait10s><tab><tab><tab>UTC<enter><leftShiftOn><tab><leftShiftOff><spacebar>",
    # Analytics
    local.continue,
    # Screen time: later
    "<wait10s><tab><tab><spacebar>",
    # Siri: off
    "<wait10s><tab><spacebar><leftShiftOn><tab><leftShiftOff><spacebar>",
    # FileVault: not now; sure
    "<wait10s><leftShiftOn><tab><tab><leftShiftOff><spacebar>",
    "<wait10s><tab><spacebar>",
    # The look
    local.continue,
    # Updates: only downloads
    "<wait10s><tab><tab><spacebar>",
    # Welcome
    "<wait30s><spacebar>",
    # Voice Over off
    "<wait10s>${local.voice_over}",
  ]

  # The screens of 27 are those of 26, as far as they are known: the first builds should be watched (headless = false). With
  # provisioning = true nothing is typed.
  boot_commands = {
    "26" = concat(local.setup_26, local.terminal)
    "27" = concat(local.setup_26, local.terminal)
  }

  boot_command = var.provisioning ? ["<wait120s>"] : local.boot_commands[tostring(var.release)]
}
