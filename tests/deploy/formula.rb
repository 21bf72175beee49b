# Plays the parts of Homebrew that the formula uses: formula.rb FORMULA mac|linux arm|intel PREFIX, in an unpacked archive.
#
# It installs into PREFIX, and prints what the formula says as JSON. A word of Homebrew that is not here fails.
require "fileutils"
require "json"
require "pathname"

FORMULA, SYSTEM, PROCESSOR, PREFIX = ARGV
HOMEBREW_PREFIX = Pathname(PREFIX)

module OS
  def self.mac? = SYSTEM == "mac"
end

class Pathname
  def install(*sources)
    mkpath
    sources.flatten.each do |source|
      raise "#{source} is not in the archive" unless File.exist?(source.to_s)
      FileUtils.cp_r(source.to_s, self)
    end
  end
end

class Formula
  SAID = {}
  class << self
    %i[desc homepage license version url sha256].each do |word|
      define_method(word) { |text| SAID[word] = text }
    end
    def depends_on(_) = nil
    def on_macos = SYSTEM == "mac" && yield
    def on_linux = SYSTEM == "linux" && yield
    def on_arm = PROCESSOR == "arm" && yield
    def on_intel = PROCESSOR == "intel" && yield
    def service(&block) = Service.class_eval(&block)
    def test
      raise "the test is empty" unless block_given?
    end
  end

  class Service
    def self.name(macos: nil, linux: nil) = SAID[:service] = SYSTEM == "mac" ? macos : linux
  end

  def prefix = HOMEBREW_PREFIX
  alias opt_prefix prefix
  def bin = prefix/"bin"
  alias opt_bin bin
  def var = prefix/"var"
  def man1 = prefix/"share/man/man1"
  def doc = prefix/"share/doc/mayfly"
  def pkgshare = prefix/"share/mayfly"
  alias opt_pkgshare pkgshare
  def bash_completion = prefix/"etc/bash_completion.d"
  def zsh_completion = prefix/"share/zsh/site-functions"
  def fish_completion = prefix/"share/fish/vendor_completions.d"
end

HOMEBREW_PREFIX.mkpath
load FORMULA
formula = Mayfly.new
formula.install
caveats = formula.caveats
raise "caveats" if OS.mac? != caveats.to_s.include?("dev.mayfly.logs.plist")
puts JSON.generate(Formula::SAID)
