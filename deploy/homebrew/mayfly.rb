# Formula for Homebrew. deploy/homebrew/fill.sh fills in the words between @ when a release is built (make dist).
class Mayfly < Formula
  desc "Fresh virtual machine for every CI job"
  homepage "@REPOSITORY@"
  version "@VERSION@"
  license "Apache-2.0"

  on_macos do
    depends_on macos: :ventura
    depends_on arch: :arm64

    url "@REPOSITORY@/releases/download/v@VERSION@/mayfly-@VERSION@-aarch64-apple-darwin.tar.gz"
    sha256 "@SHA256:aarch64-apple-darwin@"
  end

  on_linux do
    on_arm do
      url "@REPOSITORY@/releases/download/v@VERSION@/mayfly-@VERSION@-aarch64-unknown-linux-gnu.tar.gz"
      sha256 "@SHA256:aarch64-unknown-linux-gnu@"
    end
    on_intel do
      url "@REPOSITORY@/releases/download/v@VERSION@/mayfly-@VERSION@-x86_64-unknown-linux-gnu.tar.gz"
      sha256 "@SHA256:x86_64-unknown-linux-gnu@"
    end
  end

  def install
    bin.install "bin/mayfly"
    bash_completion.install "share/bash-completion/completions/mayfly"
    zsh_completion.install "share/zsh/site-functions/_mayfly"
    fish_completion.install "share/fish/vendor_completions.d/mayfly.fish"
    man1.install Dir["share/man/man1/*.1"]
    doc.install Dir["share/doc/mayfly/*"]
    install_agents if OS.mac?
  end

  # The same agents as those of install.sh, with Homebrew's paths. The data directory is the program's default, ~/.mayfly: the
  # user who installs need not be the one who runs the service.
  def install_agents
    pkgshare.install "share/mayfly/macos"
    (var/"log/mayfly").mkpath
    %w[dev.mayfly.agent dev.mayfly.logs].each do |label|
      text = (pkgshare/"macos/#{label}.plist").read
      text.gsub!(%r{^\s*<key>MAYFLY_DATA_DIR</key>\n\s*<string>@DATA_DIR@</string>\n}, "")
      {
        "@BINARY@"  => opt_bin/"mayfly",
        "@PATH@"    => "#{HOMEBREW_PREFIX}/bin:#{HOMEBREW_PREFIX}/sbin:/usr/bin:/bin:/usr/sbin:/sbin",
        "@LOG_DIR@" => var/"log/mayfly",
        "@ROTATE@"  => opt_pkgshare/"macos/rotate-logs.sh",
      }.each { |word, value| text.gsub!(word, value.to_s) }
      (prefix/"#{label}.plist").write text
    end
  end

  # `brew services` uses the agent that is in the prefix, because its own description of a service has no limit on files, no mode
  # of new files, and nothing that leaves vms running when the service ends.
  service do
    name macos: "dev.mayfly.agent"
  end

  def caveats
    return unless OS.mac?

    <<~EOS
      Tart runs the guests:
        brew install openai/tools/tart
      `brew services start mayfly` starts the service. Its log is #{var}/log/mayfly/mayfly.log; a second agent limits its size:
        ln -sf #{opt_prefix}/dev.mayfly.logs.plist ~/Library/LaunchAgents/
        launchctl bootstrap gui/$(id -u) ~/Library/LaunchAgents/dev.mayfly.logs.plist
    EOS
  end

  test do
    assert_match "mayfly #{version}", shell_output("#{bin}/mayfly version")
    system bin/"mayfly", "serve", "--check", "--data-dir", testpath/"data"
  end
end
