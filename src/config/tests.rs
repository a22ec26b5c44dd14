use super::*;

const GOOD: &str = "[cluster]\nadvertise = \"192.0.2.1:7480\"\n";

fn error(text: &str) -> String {
    Config::parse("node.toml", text).expect_err("a bad configuration").to_string()
}

/// The message holds every one of `parts`.
#[track_caller]
fn says(text: &str, parts: &[&str]) {
    let message = error(text);
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in:\n{message}");
    }
}

#[test]
fn the_example_parses_and_equals_the_defaults() {
    let example: Config = toml::from_str(EXAMPLE).expect("the example parses");
    assert_eq!(example, Config::default());
}

#[test]
fn all_that_is_missing_from_the_example_is_the_address_that_only_its_user_knows() {
    let message = error(EXAMPLE);
    assert_eq!(message.lines().count(), 1, "{message}");
    says(EXAMPLE, &["[cluster] advertise", "advertise = \"HOST:7480\""]);
    Config::parse("node.toml", &EXAMPLE.replace("# advertise", "advertise")).expect("good as soon as it is given");
}

#[test]
fn every_field_appears_in_the_example() {
    let full = Config {
        eid: Some(Eid::new([2, 0, 0, 0, 0, 1])),
        http: Http { token_file: Some("token".into()), ..Http::default() },
        cluster: Cluster { advertise: "a:1".parse().ok(), ..Cluster::default() },
        sip: Sip { security_log: Some("log".into()), ..Sip::default() },
        ..Config::default()
    };
    let json = serde_json::to_value(&full).expect("it serialises");
    let sections = json.as_object().expect("a table");
    // A list of sections: each key of one is looked for below its header.
    let uncommented = EXAMPLE.replace("# ", "");
    for key in full_asterisk_keys() {
        assert!(line_of(&uncommented, "asterisk", &key) != line_of(&uncommented, "asterisk", "no such key"), "{key}");
    }
    for (name, value) in sections.iter().filter(|(name, _)| *name != "asterisk") {
        let Some(section) = value.as_object() else {
            assert!(has_key(EXAMPLE, "", name), "{name}");
            continue;
        };
        assert!(EXAMPLE.contains(&format!("\n[{name}]\n")), "[{name}]");
        for key in section.keys() {
            assert!(has_key(EXAMPLE, name, key), "[{name}] {key}");
        }
    }
}

fn full_asterisk_keys() -> Vec<String> {
    let config: Config = toml::from_str(ATTACHED).expect("it parses");
    let json = serde_json::to_value(&config.asterisk[0]).expect("it serialises");
    json.as_object().expect("a table").keys().cloned().collect()
}

/// `key =` in its section, commented out or not.
fn has_key(example: &str, section: &str, key: &str) -> bool {
    let uncommented: String =
        example.lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(line))).collect();
    let at = line_of(&uncommented, section, key);
    at.is_some() && at != line_of(&uncommented, section, "no such key")
}

#[test]
fn the_smallest_configuration_says_how_this_node_is_reached() {
    let config = Config::parse("node.toml", GOOD).expect("good");
    assert_eq!(config.advertise(), "192.0.2.1:7480");
    let config = Config::parse("node.toml", "[cluster]\nlisten = \"192.0.2.7:9\"\n").expect("good");
    assert_eq!(config.advertise(), "192.0.2.7:9", "an address one can listen on and reach serves as both");
}

#[test]
fn a_full_configuration_is_read() {
    let text = "eid = \"02:00:00:00:01:00\"\nsite = \"fra\"\ndata_dir = \"/d\"\nnever_shared = [\"secrets\"]\n\
        [cluster]\nname = \"c\"\nlisten = \"[::1]:1\"\nseeds = [\"a.example:7480\", \"[2001:db8::1]:7480\"]\n\
        [tls]\nca = \"a\"\ncert = \"b\"\nkey = \"c\"\n[http]\nlisten = \"0.0.0.0:80\"\ntoken_file = \"t\"\n\
        [shared]\nfoo = \"global\"\n\"uni/x\" = \"unique\"\n[limits]\nvalue_max_bytes = 10\n\
        [clock]\nmax_clock_drift_ms = 5\n[gossip]\ninterval_ms = 100\n";
    let config = Config::parse("node.toml", text).expect("good");
    assert_eq!(config.eid, Some(Eid::new([2, 0, 0, 0, 1, 0])));
    assert_eq!(config.cluster.seeds[1].as_str(), "[2001:db8::1]:7480");
    assert_eq!(config.shared.values().copied().collect::<Vec<_>>(), [Mode::Global, Mode::Unique]);
    assert_eq!(config.limits.of_input().value_max_bytes, 10);
    assert_eq!(config.clock.max_clock_drift_ms.get(), 5);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_what_there_is() {
    says(
        "[http]\nlisten = \"127.0.0.1:1\"\nport = 3\n",
        &["node.toml", "line 3", "unknown field `port`", "token_file", "kinfolk config example"],
    );
    says("datadir = \"/d\"\n", &["line 1", "unknown field `datadir`", "data_dir"]);
}

#[test]
fn bad_values_are_named_with_their_line_and_what_is_wanted() {
    says("\neid = \"02:00\"\n", &["line 2", "'02:00' is not an EID", "02:00:00:00:00:01"]);
    says("[http]\nlisten = \"localhost\"\n", &["line 2", "'localhost' is not an address to listen on", "<ip>:<port>"]);
    says("[cluster]\nseeds = [\"a\"]\n", &["line 2", "'a' is not host:port"]);
    says("[shared]\nfoo = \"local\"\n", &["line 2", "unknown variant `local`", "`global` or `unique`"]);
    says("[shared]\n\"a//b\" = \"global\"\n", &["line 2", "segment 2 is empty"]);
    says("site = 3\n", &["line 1", "expected a string"]);
    says("site = \n", &["line 1"]);
}

#[test]
fn a_drift_of_zero_is_refused_with_the_reason() {
    says("[clock]\nmax_clock_drift_ms = 0\n", &["line 2", "no limit", "drag every other clock", "60000"]);
}

#[test]
fn an_http_address_off_loopback_needs_a_token() {
    let text = format!("{GOOD}[http]\nlisten = \"192.0.2.1:7481\"\n");
    says(&text, &["[http] token_file", "192.0.2.1:7481", "token_file = \"FILE\"", "127.0.0.1"]);
    Config::parse("node.toml", &format!("{text}token_file = \"t\"\n")).expect("good with one");
}

#[test]
fn an_address_that_nobody_can_reach_is_not_advertised() {
    says("[cluster]\nadvertise = \"0.0.0.0:7480\"\n", &["line 2", "nobody can reach 0.0.0.0:7480"]);
    says("", &["[cluster] advertise", "missing", "HOST:7480"]);
}

#[test]
fn everything_that_is_out_of_range_is_told_at_once() {
    let text = format!(
        "site = \"\"\n{GOOD}[limits]\npath_max_bytes = 2000\nbatch_max = 0\nhttp_body_max_bytes = 1000\n\
         [gossip]\ndead_node_grace_s = 901\n"
    );
    says(
        &text,
        &[
            "line 1: site: it has 0 bytes",
            "line 5: [limits] path_max_bytes: 2000 is too much: write 1024 or less",
            "line 6: [limits] batch_max: 0 is too little: write 1 or more",
            "line 7: [limits] http_body_max_bytes",
            "line 9: [gossip] dead_node_grace_s: 901 is too much: write 900 or less",
        ],
    );
    assert_eq!(error(&text.replace("\"\"", "\"a\"")).lines().count(), 4);
}

#[test]
fn what_cannot_be_shared_is_found_before_the_start() {
    let text = format!("never_shared = [\"mine\"]\n{GOOD}[shared]\n");
    for (line, part) in [
        ("registrar = \"global\"", "[shared] registrar: family 'registrar' must never be shared globally"),
        ("mine = \"global\"", "'mine' must never be shared globally"),
        ("foo = \"global\"\n\"foo/bar\" = \"global\"", "line 6: [shared] foo/bar"),
        ("__asterisk_shared_family = \"unique\"", "must never be shared"),
    ] {
        says(&format!("{text}{line}\n"), &[part]);
    }
}

const ATTACHED: &str = "[sip]\nlisten = [\"udp:127.0.0.1:5060\"]\n[[asterisk]]\nname = \"ast1\"\n\
    eid = \"02:00:00:00:00:01\"\nuri = \"sip:kinfolk@127.0.0.11:5060\"\n";

#[test]
fn an_attached_asterisk_needs_a_name_an_eid_and_a_uri() {
    let config = Config::parse("node.toml", &format!("{GOOD}{ATTACHED}")).expect("good");
    let attachments = config.attachments(&config.sip.listen);
    let [ast1] = attachments.as_slice() else { panic!("one is attached: {attachments:?}") };
    assert_eq!((&*ast1.name, &*ast1.listen_user, &*ast1.sent_by), ("ast1", "ast1", "127.0.0.1:5060"));
    assert_eq!(ast1.from, "sip:ast1@127.0.0.1");
    assert!(ast1.accept_from[0].contains("127.0.0.11".parse().expect("an address")));
    assert!(!ast1.accept_from[0].contains("127.0.0.12".parse().expect("an address")));
    assert!(ast1.credentials.is_none() && ast1.families.is_empty() && !ast1.allow_family_delete);
}

#[test]
fn all_of_an_attached_asterisk_can_be_said() {
    let text = format!(
        "{GOOD}{ATTACHED}{}",
        "transport = \"tcp\"\nfrom = \"sip:node@192.0.2.7\"\nlisten_user = \"k\"\n\
        password = \"p\"\naccept_from = [\"192.0.2.0/24\", \"2001:db8::/32\"]\nfamilies = [\"CF\"]\n\
        allow_family_delete = true\nupdates_per_s_max = 7\nkeys_max = 8\ntombstones_max = 9\n"
    );
    let text = text.replace("udp:127.0.0.1:5060", "tcp:0.0.0.0:5070");
    let config = Config::parse("node.toml", &text).expect("good");
    let ast1 = &config.attachments(&config.sip.listen)[0];
    assert_eq!((&*ast1.sent_by, &*ast1.from, &*ast1.listen_user), ("192.0.2.7:5070", "sip:node@192.0.2.7", "k"));
    let credentials = ast1.credentials.as_ref().expect("there is a password");
    assert_eq!((&*credentials.username, &*credentials.password), ("ast1", "p"));
    assert_eq!((ast1.quotas.updates_per_s, ast1.quotas.keys_max, ast1.quotas.tombstones_max), (7, 8, 9));
    assert!(ast1.accept_from[1].contains("2001:db8::5".parse().expect("an address")));
    assert!(!format!("{config:?}").contains("\"p\""), "a password is not logged");
}

#[test]
fn what_is_wrong_with_an_attached_asterisk_is_said_with_its_name() {
    for (line, parts) in [
        ("eid = \"02:00:00:00:00:09\"", vec!["own EID", "kinfolk tls issue"]),
        ("uri = \"sip:127.0.0.11\"", vec!["[asterisk] uri", "'ast1'", "no user part"]),
        ("uri = \"tel:5\"", vec!["[asterisk] uri", "begins with sip:"]),
        ("uri = \"sip:k@ast1.example.com\"", vec!["[asterisk] accept_from", "is a name", "list the addresses"]),
        ("transport = \"tls\"", vec!["[asterisk] transport", "\"udp\" or \"tcp\""]),
        ("transport = \"tcp\"", vec!["[asterisk] transport", "nothing in [sip] listen is tcp"]),
        ("accept_from = [\"192.0.2.0/33\"]", vec!["[asterisk] accept_from", "192.0.2.0/24"]),
        ("algorithm = \"SHA-512\"", vec!["[asterisk] algorithm", "\"MD5\" or \"SHA-256\""]),
        ("username = \"u\"", vec!["[asterisk] password", "missing"]),
        ("updates_per_s_max = 0", vec!["[asterisk] updates_per_s_max", "1 or more"]),
        ("families = [\"02:00:00:00:00:01/foo\"]", vec!["[asterisk] families", "begins with an EID"]),
        ("colour = 1", vec!["unknown field `colour`"]),
    ] {
        let key = line.split(' ').next().expect("a key");
        let mut text: String =
            ATTACHED.lines().filter(|old| !old.starts_with(&format!("{key} "))).map(|old| format!("{old}\n")).collect();
        text = format!("eid = \"02:00:00:00:00:09\"\n{GOOD}{text}{line}\n");
        says(&text, &parts);
    }
    says(&format!("{GOOD}[sip]\nlisten = [\"udp:5060\"]\n"), &["udp:<ip>:<port>"]);
    says(
        &format!("{GOOD}[sip]\nlisten = [\"udp:127.0.0.1:5060\"]\n"),
        &["line 4: [sip] listen", "no Asterisk is attached"],
    );
    let twice =
        format!("{GOOD}{ATTACHED}{}", ATTACHED.split_once("[[").map(|(_, rest)| format!("[[{rest}")).expect("it"));
    says(&twice, &["two are called 'ast1'", "an EID is one server's", "give each its own"]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/no/such/node.toml")).expect_err("no file").to_string();
    assert!(error.contains("/no/such/node.toml") && error.contains("kinfolk config example"), "{error}");
}
