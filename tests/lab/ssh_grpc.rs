//! Programs of others, unmodified: OpenSSH and gRPC.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use crate::harness::{Host, Lab, Pair, Program, SOON, run};
use crate::traffic::{same_content, write_random};

#[test]
fn ssh_runs_a_command_and_copies_a_file() {
    let lab = Lab::two_hosts();
    let pair = Pair::trusted(&lab);
    let folder = lab.directory();
    make_keys(folder);
    write_random(&folder.join("file"), 10_000_000);
    for address in pair.a.addresses_of(&pair.b) {
        let listen = if address.is_ipv6() { IpAddr::from(pair.b.ipv6()) } else { pair.b.ipv4().into() };
        let port = lab.b().fresh_port();
        let _server = serve_ssh(lab.b(), folder, listen, port);
        let options = client_options(folder);
        let said = lab.a().ok(&format!("ssh {options} -p {port} root@{address} echo over $SSH_CONNECTION"));
        assert!(said.contains(&format!(" {listen} {port}")), "ssh answered {said:?}");
        let (file, copy) = (folder.join("file"), folder.join("copy"));
        let shown = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        let target = copy.display();
        lab.a().ok(&format!("scp -q {options} -P {port} {} root@{shown}:{target}", file.display()));
        assert!(same_content(&file, &copy), "scp to {address} changed the file");
        std::fs::remove_file(copy).unwrap();
    }
}

#[test]
fn grpc_calls_and_streams() {
    let lab = Lab::two_hosts();
    let pair = Pair::trusted(&lab);
    for address in pair.a.addresses_of(&pair.b) {
        let port = lab.b().fresh_port();
        let (listen, shown) = match address {
            IpAddr::V4(address) => (pair.b.ipv4().to_string(), address.to_string()),
            IpAddr::V6(address) => (format!("[{}]", pair.b.ipv6()), format!("[{address}]")),
        };
        let _server = lab.b().serve("grpc_serve.py", &format!("{listen} {port}"));
        lab.a().call("grpc_call.py", &format!("{shown} {port}")).ok();
    }
}

/// Options of the client for keys in `folder`.
pub(crate) fn client_options(folder: &Path) -> String {
    format!(
        "-i {key} -o UserKnownHostsFile={known} -o StrictHostKeyChecking=accept-new -o BatchMode=yes \
         -o ConnectTimeout=20 -F none",
        key = folder.join("user").display(),
        known = folder.join("known_hosts").display()
    )
}

/// Host and user key, and a daemon configuration that admits that user key only.
pub(crate) fn make_keys(folder: &Path) {
    for name in ["host", "user"] {
        let mut keygen = Command::new("ssh-keygen");
        run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(name)), SOON).ok();
    }
    let folder = folder.display();
    let settings = format!(
        "HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\nStrictModes no\nUsePAM no\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\nPrintMotd no\n\
         Subsystem sftp internal-sftp\n"
    );
    std::fs::write(format!("{folder}/sshd_config"), settings).unwrap();
    // The daemon's own unprivileged half lives there; Debian makes it when the service starts.
    std::fs::create_dir_all("/run/sshd").unwrap();
}

pub(crate) fn serve_ssh(host: &Host, folder: &Path, listen: IpAddr, port: u16) -> Program {
    let mut command = host.command("/usr/sbin/sshd");
    command.args(["-D", "-e", "-f"]).arg(folder.join("sshd_config"));
    let listen = if listen.is_ipv6() { format!("[{listen}]:{port}") } else { format!("{listen}:{port}") };
    let mut server = Program::spawn(command.args(["-o", &format!("ListenAddress={listen}")]));
    server.wait_for_text("Server listening");
    server
}
