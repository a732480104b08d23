use std::fs::OpenOptions;

use super::{command, finish};

#[test]
fn a_reader_that_went_away_is_no_error() {
    for arguments in [&["completion", "bash"][..], &["version", "--json"], &["--help"], &["--json", "status", "--nope"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = command(arguments);
        command.stdout(writer);
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        let status = child.wait().unwrap();
        let mut stderr = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
        let expected = if arguments.contains(&"--nope") { 2 } else { 0 };
        assert_eq!((status.code(), stderr.as_str()), (Some(expected), ""), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let mut command = command(["version"]);
    command.stdout(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: standard output cannot be written: "));
}

#[test]
fn no_colour_where_there_is_no_terminal() {
    let mut with_term = command(["--socket", "/nonexistent/s", "id"]);
    with_term.env("TERM", "xterm-256color");
    assert!(!finish(with_term).stderr.contains('\u{1b}'));
}
