# Every AI agent its own address on one private network. scripts/package fills in url and sha256.
class Agentnet < Formula
  desc "Private network for AI agents over WireGuard and UDP"
  homepage "https://agentnet.example.org/"
  url "https://agentnet.example.org/releases/agentnet-0.1.0.tar.gz"
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license any_of: ["MIT", "Apache-2.0"]

  depends_on "rust" => :build

  def install
    system "cargo", "install", *std_cargo_args

    mkdir "man" do
      system bin/"agentnet", "man", "."
      man1.install Dir["*.1"]
    end
    generate_completions_from_executable(bin/"agentnet", "completion", shells: [:bash, :zsh, :fish])
    pkgshare.install "packaging/agentnet.toml", "packaging/launchd"
    doc.install "docs/reference.md", "docs/privileges.md"
  end

  def caveats
    <<~EOS
      The agent makes a network interface, so it runs as root:
        sudo brew services start agentnet
      Its configuration is /etc/agentnet/agentnet.toml, if that is there. One to begin with:
        #{opt_pkgshare}/agentnet.toml
    EOS
  end

  service do
    run [opt_bin/"agentnet", "daemon"]
    require_root true
    keep_alive crashed: true
    log_path var/"log/agentnet.log"
    error_log_path var/"log/agentnet.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/agentnet version")
    (testpath/"agentnet.toml").write "name = \"test\"\n"
    assert_match "is valid", shell_output("#{bin}/agentnet config check #{testpath}/agentnet.toml")
    assert_match "no_daemon", shell_output("#{bin}/agentnet --json --socket #{testpath}/s status", 3)
  end
end
