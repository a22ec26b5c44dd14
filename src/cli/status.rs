//! `kinfolk status`: what a node knows of itself and its cluster, readable at 80 columns.

use std::collections::BTreeMap;
use std::io::{self, Write};

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

use super::client::Client;
use super::database::compact;
use super::{Exit, Outcome, complain};
use crate::core::family::Mode;
use crate::status::{
    AdapterStatus, AgreementStatus, FamilyStatus, FloorStatus, FollowStatus, MemberStatus, PinnedStatus, Status, utc,
};

const WIDTH_COLUMNS: u16 = 80;
/// An IPv4 address and its port stay on one line, with two blanks of padding.
const ADDRESS_COLUMNS: u16 = 23;

pub fn run(client: &Client, json: bool, out: &mut dyn Write) -> Outcome {
    let answer = client.get("/v1/status")?;
    if !answer.ok() {
        complain(&answer.detail());
        return Ok(answer.exit());
    }
    if json {
        writeln!(out, "{}", compact(&answer).map_err(|error| client.nonsense(&answer, error))?)?;
        return Ok(Exit::Done);
    }
    let status: Status = serde_json::from_str(&answer.body).map_err(|error| client.nonsense(&answer, error))?;
    print(&status, out)?;
    Ok(Exit::Done)
}

fn print(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let node = &status.node;
    let ready = if node.ready { "ready" } else { "NOT READY" };
    writeln!(out, "Node {}, site {}, {ready}, version {}", node.eid, node.site, node.version)?;
    writeln!(out, "Run {} since {}, feed head {}", node.run, utc(node.since_unix_ms / 1_000), node.head)?;
    if let Some(seconds) = node.certificate_expires_unix_s {
        writeln!(out, "Certificate expires {}", utc(u64::try_from(seconds).unwrap_or(0)))?;
    }
    if node.access.revoked_certificates > 0 {
        writeln!(out, "Certificates revoked: {}", node.access.revoked_certificates)?;
    }
    for (eid, families) in &node.access.limited {
        writeln!(
            out,
            "{eid} is trusted for: {}",
            if families.is_empty() { "nothing".into() } else { families.join(", ") }
        )?;
    }
    for alarm in &node.alarms {
        writeln!(out, "ALARM: {alarm}")?;
    }
    let sites = sites(status);
    if sites.len() > 1 {
        section("Sites", &site_table(&sites), out)?;
    }
    section("Members", &members(status, &sites), out)?;
    section("Shared families", &families(status), out)?;
    if status.families.iter().any(|family| family.floor != FloorStatus::default()) {
        section("Forgotten deletions", &floors(status), out)?;
    }
    section("Follows", &follows(status), out)?;
    match &status.adapter {
        Some(adapter) => print_adapter(adapter, out),
        None => Ok(()),
    }
}

fn print_adapter(adapter: &AdapterStatus, out: &mut dyn Write) -> io::Result<()> {
    let header = ["NAME", "STATE", "HEARD", "IN", "OUT", "IN FLIGHT", "LAG", "REFUSED"];
    let mut table = table(&header, &[3, 4, 5, 6, 7], None);
    for one in &adapter.asterisks {
        let state = if one.reachable { "reachable" } else { "NOT REACHED" };
        table.add_row([
            one.name.clone(),
            state.to_string(),
            one.heard_ago_ms.map_or("never".to_string(), |ms| format!("{} ago", duration(ms))),
            one.written.to_string(),
            one.delivered_entries.to_string(),
            one.in_flight.to_string(),
            one.lag_entries.to_string(),
            one.refused.values().sum::<u64>().to_string(),
        ]);
    }
    section("Attached Asterisks", &table, out)?;
    for one in &adapter.asterisks {
        if let Some(fault) = &one.fault {
            writeln!(out, "{}: {fault}", one.name)?;
        }
        if one.undeliverable > 0 {
            writeln!(out, "{}: {} entries are too long for the patch and were left out", one.name, one.undeliverable)?;
        }
        if !one.refused.is_empty() {
            writeln!(out, "{}: refused {}", one.name, by_reason(&one.refused))?;
        }
    }
    if !adapter.refused.is_empty() {
        writeln!(out, "Refused from others: {}", by_reason(&adapter.refused))?;
    }
    Ok(())
}

fn by_reason(refused: &BTreeMap<String, u64>) -> String {
    let one = |(reason, count): (&String, &u64)| format!("{count} {reason}");
    refused.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn section(title: &str, table: &Table, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\n{title}")?;
    if table.is_empty() {
        return writeln!(out, "  none");
    }
    // Tables pad their last column; that is of use to nobody.
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}

/// A table without lines, numbers (the named columns) to the right, EIDs (the other one) never broken.
fn table(header: &[&str], numbers: &[usize], eid: Option<usize>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH_COLUMNS)
        .set_header(header.iter().copied());
    for &column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    if let Some(column) = eid.and_then(|eid| table.column_mut(eid)) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    table
}

/// The members of each site, that of the node first.
fn sites(status: &Status) -> Vec<(&str, Vec<&MemberStatus>)> {
    let mut sites = BTreeMap::<(bool, &str), Vec<&MemberStatus>>::new();
    for member in &status.members {
        sites.entry((member.site != status.node.site, &member.site)).or_default().push(member);
    }
    sites.into_iter().map(|((_, site), members)| (site, members)).collect()
}

fn site_table(sites: &[(&str, Vec<&MemberStatus>)]) -> Table {
    let mut table = table(&["SITE", "NODES", "LIVE", "CONNECTED"], &[1, 2, 3], None);
    for (site, members) in sites {
        let count = |of: fn(&MemberStatus) -> bool| members.iter().filter(|member| of(member)).count().to_string();
        let connected = count(|member| member.live && member.connected);
        table.add_row([site.to_string(), members.len().to_string(), count(|member| member.live), connected]);
    }
    table
}

fn members(status: &Status, sites: &[(&str, Vec<&MemberStatus>)]) -> Table {
    let mut table = table(&["EID", "SITE", "ADDRESS", "STATE", "HEAD", "FAMILIES"], &[4], Some(0));
    if let Some(address) = table.column_mut(2) {
        address.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(ADDRESS_COLUMNS)));
    }
    for member in sites.iter().flat_map(|(_, members)| members) {
        let families: Vec<String> =
            member.families.iter().map(|(name, mode)| format!("{name} {}", letter(*mode))).collect();
        table.add_row([
            member.eid.to_string(),
            member.site.clone(),
            member.address.clone(),
            state(member, status).to_string(),
            number(member.head),
            families.join("\n"),
        ]);
    }
    table
}

/// As in the Shared column of `database show`.
fn letter(mode: Mode) -> &'static str {
    match mode {
        Mode::Global => "(G)",
        Mode::Unique => "(U)",
    }
}

fn state(member: &MemberStatus, status: &Status) -> &'static str {
    match (member.live, member.connected) {
        _ if member.eid == status.node.eid => "self",
        (true, true) => "live",
        // Nodes of other sites need not be connected.
        (true, false) if member.site == status.node.site => "no link",
        (true, false) => "live",
        (false, _) => "dead",
    }
}

fn families(status: &Status) -> Table {
    let mut table = table(&["FAMILY", "MODE", "KEYS", "TOMBSTONES", "ROOTS"], &[2, 3], None);
    for family in &status.families {
        table.add_row([
            family.name.clone(),
            family.mode.to_string(),
            family.keys.to_string(),
            family.tombstones.to_string(),
            roots(&family.agreement),
        ]);
    }
    table
}

/// Up to when deletions are not remembered any more, and what keeps the floor from rising further.
fn floors(status: &Status) -> Table {
    let mut table = table(&["FAMILY", "UP TO", "WAITS FOR"], &[], None);
    for FamilyStatus { name, floor, .. } in &status.families {
        let up_to = floor.unix_ms.map_or("-".to_string(), |unix_ms| utc(unix_ms / 1_000));
        let pinned = floor.pinned.as_ref().map(|PinnedStatus { by, lacks, ms }| {
            let by: Vec<String> = by.iter().map(ToString::to_string).collect();
            format!("{} ({lacks}), for {}", by.join(" "), duration(*ms))
        });
        let adopting = floor.adopting.then(|| "this node, which adopts a higher one".to_string());
        table.add_row([name.clone(), up_to, adopting.or(pinned).unwrap_or("-".to_string())]);
    }
    table
}

/// Whether the others have the same of a family.
fn roots(agreement: &AgreementStatus) -> String {
    match (agreement.equal, agreement.differing) {
        (0, 0) => "-".to_string(),
        (equal, 0) => format!("{equal} equal"),
        (equal, differing) => {
            let since = agreement.differing_ms.map_or_else(String::new, |ms| format!(" for {}", duration(ms)));
            format!("{equal} equal, {differing} differ{since}")
        }
    }
}

fn follows(status: &Status) -> Table {
    let mut table = table(&["FAMILY", "SOURCE", "CLASSES", "BEHIND", "LAG", "STATE"], &[3, 4], Some(1));
    for family in &status.families {
        for follow in &family.follows {
            table.add_row([
                family.name.clone(),
                follow.source.to_string(),
                follow.classes.join(", "),
                number(follow.lag_entries),
                follow.lag_ms.map_or("-".to_string(), duration),
                progress(follow).to_string(),
            ]);
        }
    }
    table
}

fn progress(follow: &FollowStatus) -> &'static str {
    match (follow.connected, follow.cursor_seq, follow.lag_entries) {
        (false, _, _) => "no link",
        (true, None, _) => "first transfer",
        (true, Some(_), Some(0)) => "up to date",
        (true, Some(_), _) => "catching up",
    }
}

fn number(number: Option<u64>) -> String {
    number.map_or("-".to_string(), |number| number.to_string())
}

/// In the largest unit that leaves at least one.
fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::eid::Eid;
    use crate::status::{AccessStatus, AsteriskStatus, NodeStatus};

    fn member(last: u8, live: bool, connected: bool) -> MemberStatus {
        MemberStatus {
            eid: Eid::new([2, 0, 0, 0, 0, last]),
            site: "frankfurt".to_string(),
            address: "192.168.100.101:7480".to_string(),
            version: "0.1.0".to_string(),
            live,
            connected,
            head: live.then_some(1_234_567),
            families: BTreeMap::from([("foo".to_string(), Mode::Global), ("hotdesk".to_string(), Mode::Unique)]),
        }
    }

    fn status() -> Status {
        let follow = FollowStatus {
            source: Eid::new([2, 0, 0, 0, 0, 2]),
            classes: vec!["local".to_string(), "near".to_string(), "far".to_string()],
            cursor_seq: Some(7),
            head: Some(9),
            lag_entries: Some(2),
            lag_ms: Some(1_250),
            connected: true,
        };
        Status {
            node: NodeStatus {
                eid: Eid::new([2, 0, 0, 0, 0, 1]),
                site: "frankfurt".to_string(),
                version: "0.1.0".to_string(),
                run: "00000000000000ab".to_string(),
                head: 1_234_567,
                ready: true,
                since_unix_ms: 1_795_337_700_000,
                certificate_expires_unix_s: Some(4_102_444_800),
                quarantined: 0,
                access: AccessStatus {
                    revoked_certificates: 1,
                    limited: [(Eid::new([2, 0, 0, 0, 0, 2]), vec!["CF".into()])].into(),
                    ..AccessStatus::default()
                },
                alarms: vec!["the clock of 02:00:00:00:00:02 is 3 h ahead".to_string()],
            },
            members: vec![member(1, true, true), member(2, true, false), member(3, false, false)],
            families: vec![FamilyStatus {
                name: "foo".to_string(),
                mode: Mode::Global,
                keys: 10,
                tombstones: 3,
                agreement: AgreementStatus { root: None, equal: 1, differing: 1, differing_ms: Some(65_000) },
                floor: FloorStatus {
                    unix_ms: Some(1_795_337_700_000),
                    adopting: false,
                    pinned: Some(PinnedStatus {
                        by: vec![Eid::new([2, 0, 0, 0, 0, 3])],
                        lacks: "gathered".to_string(),
                        ms: 7_300_000,
                    }),
                },
                follows: vec![follow],
            }],
            adapter: Some(AdapterStatus {
                listening: vec!["udp:127.0.0.1:5060".to_string()],
                refused: [("unlisted".to_string(), 31)].into(),
                asterisks: vec![asterisk()],
            }),
        }
    }

    fn asterisk() -> AsteriskStatus {
        AsteriskStatus {
            name: "pbx-frankfurt".to_string(),
            reachable: false,
            heard_ago_ms: Some(65_000),
            in_flight: 12,
            lag_entries: 1_234,
            accepted: 5,
            written: 12_345,
            repeated: 1,
            delivered: 7,
            delivered_entries: 12_345,
            failed: 2,
            undeliverable: 3,
            restarts: 1,
            delayed: 0,
            refused: [("eid".to_string(), 2), ("credentials".to_string(), 40)].into(),
            fault: Some("503 Service Unavailable".to_string()),
        }
    }

    fn printed(status: &Status) -> String {
        let mut out = Vec::new();
        print(status, &mut out).expect("memory");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn it_is_readable_at_80_columns() {
        let text = printed(&status());
        for line in text.lines() {
            assert!(line.chars().count() <= usize::from(WIDTH_COLUMNS), "{line}\n{text}");
        }
        for part in [
            "Node 02:00:00:00:00:01, site frankfurt, ready, version 0.1.0",
            "since 2026-11-22 08:55:00 UTC, feed head 1234567",
            "Certificate expires 2100-01-01 00:00:00 UTC",
            "ALARM: the clock of 02:00:00:00:00:02",
            "02:00:00:00:00:03",
            "192.168.100.101:7480",
            "local, near, far",
            "catching up",
            "foo 2026-11-22 08:55:00 UTC 02:00:00:00:00:03 (gathered), for 2 h",
            "pbx-frankfurt NOT REACHED 65.0 s ago",
            "pbx-frankfurt: 503 Service Unavailable",
            "pbx-frankfurt: 3 entries are too long for the patch",
            "pbx-frankfurt: refused 40 credentials, 2 eid",
            "Refused from others: 31 unlisted",
        ] {
            let one_blank = text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
            assert!(one_blank.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn of_several_sites_each_is_counted_and_the_nodes_of_the_own_one_come_first() {
        let at = |site: &str, member: MemberStatus| MemberStatus { site: site.to_string(), ..member };
        let members = vec![
            member(1, true, true),
            at("berlin", member(2, true, false)),
            at("berlin", member(3, false, false)),
            member(4, true, false),
        ];
        let text = printed(&Status { members, ..status() });
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let sites = words.iter().position(|line| *line == ["Sites"]).expect("a section");
        assert_eq!(words[sites + 2..sites + 4], [["frankfurt", "2", "2", "1"], ["berlin", "2", "1", "0"]]);
        let order: Vec<&str> = words.iter().skip(sites + 4).filter(|line| line.len() > 4).map(|line| line[0]).collect();
        let eids = [1, 4, 2, 3].map(|last| format!("02:00:00:00:00:0{last}"));
        assert_eq!(order.into_iter().filter(|word| word.starts_with("02:")).take(4).collect::<Vec<_>>(), eids);
        let line = |eid: &str| text.lines().find(|line| line.contains(eid) && line.contains(":7480")).expect("a line");
        assert!(line(&eids[1]).contains("no link") && line(&eids[2]).contains("live"), "{text}");
    }

    #[test]
    fn a_node_alone_shows_that_there_is_nothing() {
        let text = printed(&Status { members: vec![], families: vec![], adapter: None, ..status() });
        assert_eq!(text.matches("  none\n").count(), 3, "{text}");
    }

    #[test]
    fn the_json_is_read_as_it_is_written() {
        let json = serde_json::to_string(&status()).expect("JSON");
        assert_eq!(serde_json::from_str::<Status>(&json).expect("the same"), status());
    }

    #[test]
    fn moments_and_durations_are_for_people() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400 + 86_399), "2000-02-29 23:59:59 UTC");
        let durations = [0, 999, 1_000, 119_999, 120_000, 7_200_000, 172_800_000].map(duration);
        assert_eq!(durations, ["0 ms", "999 ms", "1.0 s", "119.9 s", "2 min", "2 h", "2 d"]);
    }
}
