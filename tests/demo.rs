//! The demo succeeds, fits a terminal, and leaves nothing behind, however it ends.

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn demo(dir: &Path) -> Child {
    let mut command = Command::new(common::BINARY);
    command.arg("demo").env("TMPDIR", dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary runs")
}

/// No file is left, and no process that was told of one.
#[track_caller]
fn nothing_left(dir: &Path) {
    let left: Vec<_> = std::fs::read_dir(dir).expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
    let name = dir.display().to_string();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let running = processes.filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok());
    let running: Vec<String> = running.filter(|command| command.contains(&name)).collect();
    assert!(running.is_empty(), "{running:?}");
}

#[test]
fn the_demo_ends_with_all_nodes_equal_and_fits_80_columns() {
    let dir = tempfile::tempdir().expect("a directory");
    let said = demo(dir.path()).wait_with_output().expect("it ends");
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert_eq!(said.status.code(), Some(0), "{out}{err}");
    assert_eq!(err, "");
    for line in out.lines() {
        assert!(line.chars().count() <= 80, "{line:?}");
    }
    assert_eq!(out.lines().filter(|line| line.ends_with("  yes")).count(), 3, "{out}");
    assert!(out.contains("2598  written anew") && out.contains("OK in "), "{out}");
    nothing_left(dir.path());
}

#[test]
fn a_demo_that_is_interrupted_stops_its_nodes_and_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = demo(dir.path());
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("Import") {
            line.clear();
            assert_ne!(out.read_line(&mut line).expect("text"), 0, "it ended too early");
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("fits")).expect("a process");
        kill_process(pid, signal).expect("interrupted");
        let mut rest = String::new();
        out.read_to_string(&mut rest).expect("text");
        let said = child.wait_with_output().expect("it ends");
        let err = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(3), "{rest}{err}");
        assert!(err.contains("interrupted; the nodes are stopped"), "{err}");
        nothing_left(dir.path());
    }
}
