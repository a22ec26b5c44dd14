//! Black box: the real binary against a node that is played by a script. What is said on stdout and
//! stderr, the exit codes, and what goes over the wire.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use mock::{Mock, Reply, problem};

#[path = "cli/mock.rs"]
mod mock;

const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/database-show.txt");

/// The binary with a clean environment.
fn kinfolk(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kinfolk"));
    command.args(args).env_remove("KINFOLK_NODE").env_remove("KINFOLK_TOKEN").stdin(Stdio::null());
    command
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code().expect("an exit code"),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

fn run(args: &[&str]) -> Said {
    said(kinfolk(args).output().expect("the binary runs"))
}

/// `kinfolk database …` against a node that gives one reply; what was said, and the request as
/// `METHOD /path body`.
#[track_caller]
fn database(words: &[&str], reply: Reply) -> (Said, String) {
    let mock = Mock::new(vec![reply]);
    let args = [&["--node", &mock.url, "database"], words].concat();
    let said = run(&args);
    let request = mock.requests().remove(0);
    (said, format!("{} {} {}", request.method, request.path, String::from_utf8_lossy(&request.body)))
}

/// What `words` say on stdout and their exit code, given the node's reply; stderr stays empty.
#[track_caller]
fn says(words: &[&str], reply: Reply, request: &str, out: &str, code: i32) {
    let (said, asked) = database(words, reply);
    assert_eq!((said.out.as_str(), said.err.as_str(), said.code), (out, "", code));
    assert_eq!(asked.trim_end(), request);
}

const WRITTEN: &str = r#"{"path":"/foo/k1","stamp":"1790000000000.0@02:00:00:00:00:01#00000000000000ab"}"#;

#[test]
fn put_get_and_del_use_the_words_of_asterisk() {
    let json = Reply::json;
    let put = &["put", "foo", "k1", "v 1"];
    says(put, json(200, WRITTEN), "PUT /v1/db/foo/k1 v 1", "Updated database successfully\n", 0);
    let got = r#"{"path":"/foo/k1","value":"v 1","stamp":"x","owner":null}"#;
    says(&["get", "foo", "k1"], json(200, got), "GET /v1/db/foo/k1", "Value: v 1\n", 0);
    let del = &["del", "foo", "k1"];
    says(del, json(200, WRITTEN), "DELETE /v1/db/foo/k1", "Database entry removed.\n", 0);
}

#[test]
fn a_miss_is_told_in_the_words_of_asterisk_with_exit_code_1() {
    let miss = || problem(404, "there is no such entry");
    says(&["get", "foo", "x"], miss(), "GET /v1/db/foo/x", "Database entry not found.\n", 1);
    says(&["del", "foo", "x"], miss(), "DELETE /v1/db/foo/x", "Database entry does not exist.\n", 1);
    says(&["deltree", "foo"], miss(), "DELETE /v1/tree/foo", "Database entries do not exist.\n", 1);
    let unshare = &["del", "shared", "nosuch"];
    says(unshare, miss(), "DELETE /v1/shared/nosuch", "Shared family 'nosuch' does not exist.\n", 1);
}

#[test]
fn families_are_shared_in_the_words_of_asterisk() {
    let put = &["put", "shared", "uni", "UNIQUE"];
    let request = r#"PUT /v1/shared/uni {"mode":"unique"}"#;
    says(put, Reply::json(200, r#"{"mode":"unique"}"#), request, "Shared database family 'uni'.\n", 0);
    let del = &["del", "shared", "uni"];
    let removed = "Shared database family 'uni' removed.\n";
    says(del, Reply::json(200, "{}"), "DELETE /v1/shared/uni", removed, 0);
    let (said, _) = database(&["put", "shared", "foo", "global"], problem(409, "family 'foo' is shared already"));
    assert_eq!(said.out, "Could not share family 'foo' (is it already shared?)\n");
    assert_eq!((said.err.as_str(), said.code), ("kinfolk: family 'foo' is shared already\n", 1));
}

#[test]
fn tables_and_counts_are_those_of_asterisk() {
    let entries = r#"{"entries":[{"path":"/02:00:00:00:00:02/uni/a","value":"b","shared":"unique"},
        {"path":"/foo/b","value":"","shared":"global"},{"path":"/uni/a","value":"7","shared":"unique"}]}"#;
    let table = "\
Key                                               : Data                      Shared
--------------------------------------------------  ------------------------- ------
/02:00:00:00:00:02/uni/a                          : b                         \n\
/foo/b                                            :                           (G)
/uni/a                                            : 7                         (U)
3 results found.\n";
    says(&["show"], Reply::json(200, entries), "GET /v1/tree", table, 0);
    says(&["showkey", "a/b"], Reply::json(200, entries), "GET /v1/keys/a/b", table, 0);
    let deltree = &["deltree", "foo", "b"];
    let removed = "2 database entries removed.\n";
    says(deltree, Reply::json(200, r#"{"removed":2}"#), "DELETE /v1/tree/foo/b", removed, 0);
    let (said, _) = database(&["show", "nosuch"], Reply::json(200, r#"{"entries":[]}"#));
    assert!(said.out.ends_with("------\n0 results found.\n"));
    assert_eq!(said.code, 0, "nothing to show is no failure");
}

#[test]
fn names_are_encoded_segment_by_segment() {
    let (_, asked) = database(&["put", "foo/bar", "a b/1001;@x%/ü", ""], Reply::json(200, WRITTEN));
    assert_eq!(asked, "PUT /v1/db/foo%2Fbar/a%20b/1001%3B%40x%25/%C3%BC ");
    let (_, asked) = database(&["show", "foo/b"], Reply::json(200, r#"{"entries":[]}"#));
    assert_eq!(asked, "GET /v1/tree/foo%2Fb ");
    let (_, asked) = database(&["del", "shared", "foo/b"], Reply::json(200, "{}"));
    assert_eq!(asked, "DELETE /v1/shared/foo%2Fb ");
}

#[test]
fn what_the_node_says_of_a_refusal_follows_on_stderr() {
    let (said, _) = database(&["put", "foo", "k", "v"], problem(413, "the value has 70000 bytes"));
    assert_eq!(
        (said.out.as_str(), said.err.as_str()),
        ("Failed to update entry\n", "kinfolk: the value has 70000 bytes\n")
    );
    assert_eq!(said.code, 1);
    let (said, _) = database(&["put", "foo", "k", "v"], problem(507, "the disk is full"));
    assert_eq!((said.err.as_str(), said.code), ("kinfolk: the disk is full\n", 3));
}

#[test]
fn a_bad_path_is_refused_before_any_node_is_asked() {
    let dead = ["--node", "http://127.0.0.1:1", "database"];
    for (words, out) in [
        (&["put", "foo", "a//b", "v"][..], "Failed to update entry\n"),
        (&["get", "foo", ""], "Database entry not found.\n"),
        (&["show", "foo/"], ""),
    ] {
        let said = run(&[&dead[..], words].concat());
        assert_eq!((said.out.as_str(), said.code), (out, 1), "{words:?} {}", said.err);
        assert!(said.err.starts_with("kinfolk: a path "), "{}", said.err);
    }
}

#[test]
fn json_is_the_answer_of_the_node_on_one_line() {
    let (said, _) = database(&["put", "foo", "k1", "v", "--json"], Reply::json(200, WRITTEN));
    assert_eq!((said.out.trim_end(), said.code), (WRITTEN, 0));
    let pretty = "{\n  \"entries\": []\n}\n";
    let (said, _) = database(&["--json", "show"], Reply::json(200, pretty));
    assert_eq!(said.out, "{\"entries\":[]}\n");
    let (said, _) = database(&["get", "foo", "x", "--json"], problem(404, "no"));
    assert_eq!((said.out.as_str(), said.code), ("{\"status\":404,\"detail\":\"no\"}\n", 1));
}

#[test]
fn wrong_words_get_asterisks_usage_and_exit_code_2() {
    let said = run(&["database", "put", "shared", "bar"]);
    let usage = "\
Usage: database put shared <family> <type>
       Creates a new shared family of the given type,
       where type is either 'unique' or 'global'.\n";
    assert_eq!((said.out.as_str(), said.code), (usage, 2));
    let said = run(&["database", "put", "shared", "bar", "local"]);
    assert_eq!((said.out.as_str(), said.code), ("Unknown share type: 'local'\n", 2));
    let said = run(&["database", "query", "select 1"]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("database query select 1"), "{}", said.err);
    assert_eq!(run(&["frobnicate"]).code, 2);
    assert_eq!(run(&["database"]).code, 2);
    for help in [&["--help"][..], &["database", "--help"], &["database", "show", "--help"], &["import", "--help"]] {
        let said = run(help);
        assert_eq!(said.code, 0, "{help:?}");
        assert!(said.out.contains("Examples:"), "{help:?}: {}", said.out);
    }
}

#[test]
fn an_unreachable_node_is_named_with_what_to_try_and_exit_code_3() {
    // The port was just free, and nobody listens on it now.
    let url = Mock::new(vec![]).url.clone();
    for args in [&["database", "show"][..], &["status"], &["export"], &["import", REAL]] {
        let said = said(kinfolk(args).env("KINFOLK_NODE", &url).output().expect("the binary runs"));
        assert_eq!(said.code, 3, "{args:?} {}", said.err);
        assert!(said.err.contains(&url) && said.err.contains("--node"), "{args:?} {}", said.err);
    }
    let (said, _) = database(&["show"], Reply::json(200, "<html>"));
    assert_eq!(said.code, 3, "something that is no Kinfolk node");
    assert!(said.err.contains("Is that a Kinfolk node"), "{}", said.err);
}

#[test]
fn the_token_comes_from_the_environment_or_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("token");
    std::fs::write(&file, "from-file\n").expect("written");
    let mock = Mock::new(vec![Reply::json(200, "{}"), Reply::json(200, "{}"), Reply::json(200, "{}")]);
    let args = ["--node", &mock.url, "database", "put", "foo", "k", "v"];
    let with_file = [&args[..], &["--token-file", file.to_str().expect("UTF-8")]].concat();
    assert_eq!(run(&args).code, 0);
    for args in [&args[..], &with_file] {
        let said = said(kinfolk(args).env("KINFOLK_TOKEN", "from-env").output().expect("the binary runs"));
        assert_eq!(said.code, 0, "{}", said.err);
    }
    let tokens: Vec<Option<String>> = mock.requests().into_iter().map(|it| it.authorization).collect();
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    assert_eq!(tokens, [None, bearer("from-env"), bearer("from-file")], "the file is named on purpose: it wins");
    let (said, _) = database(&["show"], problem(401, "a token is needed"));
    assert_eq!(said.code, 3);
    assert!(said.err.contains("KINFOLK_TOKEN") && said.err.contains("--token-file"), "{}", said.err);
}

#[test]
fn an_export_is_passed_through_byte_for_byte_and_an_incomplete_one_is_told() {
    let lines = "{\"path\":\"/a/b\"}\n{\"path\":\"/a/ü\"}\n";
    let mock = Mock::new(vec![Reply::json(200, lines), Reply::json(200, lines), Reply::cut_short(lines)]);
    let export = |args: &[&str]| run(&[&["--node", &mock.url, "export"], args].concat());
    assert_eq!((export(&[]).out.as_str(), export(&["--all"]).code), (lines, 0));
    let cut = export(&[]);
    assert_eq!(cut.code, 3);
    assert!(cut.err.contains("broke off after") && cut.err.contains("not complete"), "{}", cut.err);
    let paths: Vec<String> = mock.requests().into_iter().map(|it| it.path).collect();
    assert_eq!(paths, ["/v1/export", "/v1/export?all=true", "/v1/export"]);
}

#[test]
fn a_real_astdb_is_imported_in_batches_with_a_report_of_what_was_skipped() {
    // 2,598 rows in batches of 500.
    let reply =
        |written| Reply::json(200, &format!(r#"{{"won":0,"lost":0,"same":0,"written":{written},"refused":[]}}"#));
    let mock = Mock::new([500, 500, 500, 500, 500, 98].map(reply).into());
    let said = run(&["--node", &mock.url, "import", REAL]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(said.err, "", "no progress bar where there is no terminal");
    for part in [
        "'database show' text, 2611 lines",
        "    2598  written anew",
        "       9  skipped, marks of shared families",
        "       1  skipped, rows under the EID of another server",
        "       3  skipped, rows of families that belong to one server only (IAX, dundi, registrar)",
        "trailing blanks of the values themselves are lost",
        "  kinfolk database put shared hotdesk unique\n",
    ] {
        assert!(said.out.contains(part), "{part:?} is not in\n{}", said.out);
    }
    let requests = mock.requests();
    let lines: Vec<usize> = requests.iter().map(|it| it.body.iter().filter(|&&b| b == b'\n').count()).collect();
    assert_eq!(lines, [500, 500, 500, 500, 500, 98]);
    assert!(requests.iter().all(|it| it.method == "POST" && it.path == "/v1/import"));
    let first = String::from_utf8_lossy(&requests[0].body).into_owned();
    assert_eq!(
        first.lines().next(),
        Some(r#"{"owner":null,"path":"/AMPUSER/1001/accountcode","value":"site-00: floor 0"}"#)
    );
}

#[test]
fn a_dry_run_asks_no_node() {
    let said = run(&["--node", "http://127.0.0.1:1", "import", "--dry-run", REAL]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("    2598  would be written anew"), "{}", said.out);
}

#[test]
fn lines_that_are_refused_or_not_understood_are_told_by_their_number_in_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("backup.jsonl");
    let stamp = "1790000000000.0@02:00:00:00:00:01#00000000000000ab";
    let good = format!(r#"{{"owner":null,"path":"/foo/k","value":null,"stamp":"{stamp}"}}"#);
    std::fs::write(&file, format!("{good}\n{{\"path\":\"/foo/k\"}}\n{good}\n")).expect("written");
    let reply = r#"{"won":1,"lost":0,"same":0,"written":0,"refused":[{"line":2,"reason":"the disk is full"}]}"#;
    let mock = Mock::new(vec![Reply::json(200, reply)]);
    let said = run(&["--node", &mock.url, "import", "--as-new", path(&file)]);
    assert_eq!(said.code, 1);
    for part in
        ["1  merged, newer", "line 3: the disk is full", "line 2: not a line of an export: missing field `value`"]
    {
        assert!(said.out.contains(part), "{part:?} is not in\n{}", said.out);
    }
    let request = mock.requests().remove(0);
    assert_eq!(request.path, "/v1/import?as_new=true");
    assert_eq!(String::from_utf8_lossy(&request.body), format!("{good}\n{good}\n"));
}

#[test]
fn an_import_that_breaks_off_says_how_far_it_came() {
    let reply = r#"{"won":0,"lost":0,"same":0,"written":500,"refused":[]}"#;
    let mock = Mock::new(vec![Reply::json(200, reply), problem(503, "the node is stopping")]);
    let said = run(&["--node", &mock.url, "import", REAL]);
    assert_eq!((said.code, said.err.as_str()), (3, "kinfolk: the node is stopping\n"));
    assert!(said.out.contains("not all sent") && said.out.contains("     500  written anew"), "{}", said.out);
    assert_eq!(run(&["import", "/no/such/file"]).code, 2);
}

#[test]
fn the_status_is_a_table_or_the_json_as_it_came() {
    let json = r#"{"node":{"eid":"02:00:00:00:00:01","site":"fra","version":"0.1.0","run":"00000000000000ab","head":5,
        "ready":true,"since_unix_ms":0,"certificate_expires_unix_s":null,"alarms":[]},"members":[],"families":[]}"#;
    let mock = Mock::new(vec![Reply::json(200, json), Reply::json(200, json)]);
    let said = run(&["--node", &mock.url, "status"]);
    assert!(said.out.starts_with("Node 02:00:00:00:00:01, site fra, ready, version 0.1.0\n"), "{}", said.out);
    let said = run(&["--node", &mock.url, "status", "--json"]);
    assert!(said.out.contains("\"head\":5") && said.out.lines().count() == 1, "{}", said.out);
}

#[test]
fn a_configuration_is_checked_with_all_that_is_wrong_and_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("node.toml");
    let example = run(&["config", "example"]);
    assert_eq!(example.code, 0);
    std::fs::write(&file, example.out.replace("# advertise", "advertise")).expect("written");
    let said = run(&["config", "check", path(&file)]);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    std::fs::write(&file, "[cluster]\nadvertise = \"a:1\"\n[clock]\nmax_clock_drift_ms = 0\n").expect("written");
    let said = run(&["config", "check", path(&file)]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("node.toml") && said.err.contains("line 4"), "{}", said.err);
    assert_eq!(run(&["run", "--config", path(&file)]).code, 2, "and such a node does not start");
}

fn path(file: &Path) -> &str {
    file.to_str().expect("UTF-8")
}
