//! What happens in the demo, step by step, and what is said of it.

use std::io::Write;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::acks::{Acks, Key, read_export};
use super::api::{Api, CallError};
use super::fleet::{Fleet, FleetError};
use super::report::{self, Contest};
use super::{DemoError, NAMES};
use crate::core::clock::Stamp;
use crate::core::eid::Eid;

/// Printed by a real Asterisk with `database show`; here, so that an installed program has it too.
const ASTDB: &str = include_str!("../../../tests/fixtures/database-show.txt");

const EQUAL_MAX: Duration = Duration::from_secs(15);
const LOST_MAX: Duration = Duration::from_secs(15);
/// How many writes are acknowledged before a node is killed among more of them.
const WRITES_BEFORE_KILL: usize = 60;
const WRITERS: usize = 4;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const ALL: [usize; 3] = [A, B, C];

/// Keys that all three write at the same moment.
const RACED: [&str; 4] = ["/CF/1001", "/CF/1006", "/DND/1007", "/CustomDevstate/DND1001"];

pub fn tell(fleet: &mut Fleet, out: &mut dyn Write) -> Result<(), DemoError> {
    let mut story = Story { fleet, out, began: Instant::now(), acks: Acks::default(), contested: Vec::new() };
    story.start()?;
    story.import()?;
    story.race()?;
    story.own_copies()?;
    story.partition()?;
    story.kill()?;
    let export = story.heal()?;
    story.judge(&export)
}

struct Story<'a> {
    fleet: &'a mut Fleet,
    out: &'a mut dyn Write,
    began: Instant,
    acks: Acks,
    /// Keys that more than one node wrote.
    contested: Vec<Key>,
}

/// A write to come: its key, and its value or none to delete.
type Wanted = (&'static str, Option<&'static str>);

impl Story<'_> {
    fn start(&mut self) -> Result<(), DemoError> {
        writeln!(self.out, "Kinfolk demo: three nodes, one AstDB, and all that usually tears them apart\n")?;
        self.step("Start", "three nodes, each with its own process, data and certificate")?;
        ALL.into_iter().try_for_each(|node| self.fleet.spawn(node))?;
        for node in ALL {
            self.fleet.wait_ready(node)?;
            let (eid, http) = (self.fleet.eid(node), self.fleet.http(node));
            let pid = self.fleet.pid(node).unwrap_or_default();
            self.say(&format!("{}  EID {eid}  HTTP {http}  process {pid}", NAMES[node]))?;
        }
        self.say("Their packets pass UDP forwarders, so that the net can be cut.")
    }

    fn import(&mut self) -> Result<(), DemoError> {
        let rows = ASTDB.lines().filter(|line| line.starts_with('/')).count();
        self.step("Import", &format!("{rows} rows that a real Asterisk printed, into A"))?;
        let file = self.fleet.dir().join("database-show.txt");
        std::fs::write(&file, ASTDB)?;
        let (file, url) = (file.display().to_string(), self.fleet.url(A));
        let said = self.fleet.command(&["--node", &url, "import", &file]).output()?;
        let report = String::from_utf8_lossy(&said.stdout).into_owned();
        if !said.status.success() {
            let complaint = String::from_utf8_lossy(&said.stderr);
            return Err(DemoError::Broken(format!("kinfolk import failed: {report}{complaint}")));
        }
        let counts = report
            .lines()
            .filter(|line| line.starts_with("   ") && line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
        for line in counts {
            let line = line.trim().split(':').next().unwrap_or_default();
            self.say(&report::fit(line, report::TEXT_COLUMNS))?;
        }
        let (export, took) = self.fleet.wait_equal(&ALL, EQUAL_MAX)?;
        let records = export.lines().count();
        self.say(&format!("Shared families: {records} records, equal on A, B and C {} later.", seconds(took)))
    }

    /// The race that a patched Asterisk loses: its servers stay different.
    fn race(&mut self) -> Result<(), DemoError> {
        self.step("Race", &format!("A, B and C write the same {} keys at the same moment", RACED.len()))?;
        let barrier = Barrier::new(ALL.len());
        let written: Vec<_> = std::thread::scope(|scope| {
            let writers = ALL.map(|node| {
                let (api, barrier) = (self.fleet.api(node), &barrier);
                scope.spawn(move || {
                    RACED.map(|path| {
                        barrier.wait();
                        let value = format!("from {}", NAMES[node]);
                        api.put(path, &value).map(|stamp| (path, value, stamp))
                    })
                })
            });
            writers.into_iter().map(|writer| writer.join().expect("a writer does not panic")).collect()
        });
        for (path, value, stamp) in written.into_iter().flatten().collect::<Result<Vec<_>, CallError>>()? {
            self.acks.acknowledged((None, path.to_string()), Some(value), stamp);
        }
        let spread = RACED.map(|path| {
            let acks = self.acks.of(&key(path));
            acks[0].stamp.hlc.unix_ms() - acks[acks.len() - 1].stamp.hlc.unix_ms()
        });
        self.contested.extend(RACED.map(key));
        let (_, took) = self.fleet.wait_equal(&ALL, EQUAL_MAX)?;
        let widest = spread.into_iter().max().unwrap_or_default();
        self.say(&format!("12 writes within {widest} ms of their rivals; equal everywhere after {}.", seconds(took)))
    }

    fn own_copies(&mut self) -> Result<(), DemoError> {
        const DESK: &str = "/hotdesk/desk/01-015";
        self.step("Unique", "hotdesk is shared as unique: each server has its own copy")?;
        for node in ALL {
            let value = format!("desk seen by {}", NAMES[node]);
            let stamp = self.fleet.api(node).put(DESK, &value)?;
            self.acks.acknowledged((Some(self.fleet.eid(node)), DESK.to_string()), Some(value), stamp);
        }
        self.fleet.wait_equal(&ALL, EQUAL_MAX)?;
        let there = format!("/{}{DESK}", self.fleet.eid(C));
        let (own, other) = (self.fleet.api(A).value(DESK)?, self.fleet.api(A).value(&there)?);
        self.say(&format!("On A  {DESK} is '{}'", own.unwrap_or_default()))?;
        self.say(&format!("      {there} is '{}'", other.unwrap_or_default()))
    }

    fn partition(&mut self) -> Result<(), DemoError> {
        self.step("Partition", "no packet passes between C and the rest; both sides write")?;
        self.fleet.network().isolate(C);
        self.wait_lost(A, C)?;
        self.wait_lost(C, A)?;
        let left: [Wanted; 5] = [
            ("/CF/1008", Some("+49301000001")),
            ("/CF/1009", None),
            ("/blacklist/+19005550021", None),
            ("/DND/1008", Some("YES")),
            ("/AMPUSER/1001/answermode", Some("intercom")),
        ];
        let right: [Wanted; 5] = [
            ("/CF/1008", Some("+49301000002")),
            ("/CF/1009", Some("+49301000003")),
            ("/blacklist/+19005550021", Some("spam: robo caller")),
            ("/DND/1008", None),
            ("/AMPUSER/1001/answermode", Some("disabled")),
        ];
        // In turns, so that neither side wins them all.
        for (nth, (ours, theirs)) in left.iter().copied().zip(right).enumerate() {
            let turns = if nth % 2 == 0 { [(A, ours), (C, theirs)] } else { [(C, theirs), (B, ours)] };
            for (node, (path, value)) in turns {
                self.write(node, path, value)?;
            }
            self.contested.push(key(ours.0));
        }
        let died = self.fleet.network().passed_in_all().dropped;
        self.say(&format!("{} writes to {} keys, all acknowledged; {died} packets died.", 2 * left.len(), left.len()))?;
        let (a, c) = (self.fleet.api(A).value("/CF/1008")?, self.fleet.api(C).value("/CF/1008")?);
        self.say(&format!("/CF/1008 is {} on A, {} on C.", a.unwrap_or_default(), c.unwrap_or_default()))
    }

    fn kill(&mut self) -> Result<(), DemoError> {
        self.step("Kill", "B gets kill -9 in the middle of writes; the net is still cut")?;
        let acks = self.kill_among_writes()?;
        let (acked, unanswered) = (acks.count(), acks.count_unanswered());
        let began = Instant::now();
        self.write(A, "/DND/1010", Some("NO"))?;
        self.fleet.restart(B)?;
        let export = read_export(&self.fleet.api(B).export()?).map_err(DemoError::Broken)?;
        let faults = acks.faults(&export);
        if let Some(fault) = faults.first() {
            return Err(DemoError::Broken(format!("B lost an acknowledged write: {fault}")));
        }
        self.acks.add(acks);
        self.say(&format!("{acked} writes were acknowledged, {unanswered} cut off by the kill."))?;
        self.say(&format!("B is back after {}, with every acknowledged write.", seconds(began.elapsed())))
    }

    /// Kills B while writers are at it; gives what they know of their writes.
    fn kill_among_writes(&mut self) -> Result<Acks, DemoError> {
        let (gone, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (api, eid) = (self.fleet.api(B), self.fleet.eid(B));
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (api, gone, count) = (api.clone(), &gone, &count);
                    scope.spawn(move || write_until_gone(&api, writer, eid, gone, count))
                })
                .collect();
            let enough = || (count.load(Ordering::Relaxed) >= WRITES_BEFORE_KILL).then_some(());
            let waited = self.fleet.wait_for("writes before the kill", LOST_MAX, enough);
            let killed = self.fleet.kill_9(B);
            gone.store(true, Ordering::Relaxed);
            let mut acks = Acks::default();
            writers.into_iter().for_each(|writer| acks.add(writer.join().expect("a writer does not panic")));
            waited.and(killed)?;
            Ok(acks)
        })
    }

    fn heal(&mut self) -> Result<String, DemoError> {
        self.step("Heal", "packets pass again")?;
        let merges = self.merges()?;
        let bytes = self.fleet.network().passed_in_all().bytes;
        self.fleet.network().heal();
        let (export, took) = self.fleet.wait_equal(&ALL, EQUAL_MAX)?;
        let bytes = self.fleet.network().passed_in_all().bytes - bytes;
        let merges = self.merges()?.saturating_sub(merges);
        self.say(&format!("All three equal after {}.", seconds(took)))?;
        self.say(&format!("{merges} records crossed, {} KiB on the wire.", bytes / 1024))?;
        Ok(export)
    }

    fn judge(&mut self, export: &str) -> Result<(), DemoError> {
        let found = read_export(export).map_err(DemoError::Broken)?;
        let contests = self.contested.iter().map(|key| Contest::new(key, self.acks.of(key), found.get(key)));
        report::contests(self.out, &contests.collect::<Vec<_>>())?;
        let exports = ALL.map(|node| self.fleet.api(node).export());
        let exports = exports.into_iter().collect::<Result<Vec<_>, _>>()?;
        report::nodes(self.out, &exports)?;
        let faults = self.acks.faults(&found);
        if let Some(fault) = faults.first() {
            return Err(DemoError::Broken(format!(
                "{} acknowledged writes neither won nor lost to a greater stamp: {fault}",
                faults.len()
            )));
        }
        if exports.iter().any(|other| other != export) {
            return Err(DemoError::Broken("the nodes are not equal".to_string()));
        }
        let (count, took) = (self.acks.count(), seconds(self.began.elapsed()));
        writeln!(
            self.out,
            "\nOK in {took}: all nodes equal to the last byte; each of {count} acknowledged writes\n\
             is the winner or lost to a greater stamp."
        )?;
        Ok(())
    }

    fn write(&mut self, node: usize, path: &str, value: Option<&str>) -> Result<Stamp, DemoError> {
        let api = self.fleet.api(node);
        let stamp = match value {
            Some(value) => api.put(path, value)?,
            None => api.delete(path)?.ok_or_else(|| DemoError::Broken(format!("{path} is not on {}", NAMES[node])))?,
        };
        self.acks.acknowledged(key(path), value.map(str::to_string), stamp);
        Ok(stamp)
    }

    /// Records that arrived at the nodes since each was started.
    fn merges(&self) -> Result<u64, DemoError> {
        let merges = ALL.map(|node| self.fleet.api(node).metric("kinfolk_merges_total", ""));
        Ok(merges.into_iter().sum::<Result<f64, _>>()? as u64)
    }

    /// Waits until `node` knows that it has no connection to `other`.
    fn wait_lost(&self, node: usize, other: usize) -> Result<(), FleetError> {
        let (api, eid) = (self.fleet.api(node), self.fleet.eid(other));
        let what = format!("{} to miss {}", NAMES[node], NAMES[other]);
        self.fleet.wait_for(&what, LOST_MAX, || {
            let status = api.status().ok()?;
            let member = status.members.into_iter().find(|member| member.eid == eid);
            member.is_none_or(|member| !member.connected).then_some(())
        })
    }

    fn step(&mut self, name: &str, what: &str) -> Result<(), DemoError> {
        let at = self.began.elapsed().as_secs_f64();
        writeln!(self.out, "{at:5.1} s  {name}: {what}")?;
        Ok(self.out.flush()?)
    }

    fn say(&mut self, what: &str) -> Result<(), DemoError> {
        writeln!(self.out, "{:9}{what}", "")?;
        Ok(self.out.flush()?)
    }
}

fn key(path: &str) -> Key {
    (None, path.to_string())
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn write_until_gone(api: &Api, writer: usize, node: Eid, gone: &AtomicBool, count: &AtomicUsize) -> Acks {
    let mut acks = Acks::default();
    for nth in 0.. {
        let path = format!("/CustomPresence/{}", 2_000 + 100 * writer + nth % 25);
        let value = format!("away since call {nth}");
        match api.put(&path, &value) {
            Ok(stamp) => {
                acks.acknowledged((None, path), Some(value), stamp);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Err(CallError::NotSent(_)) => break,
            Err(_) => acks.unanswered((None, path), Some(value), node),
        }
        if gone.load(Ordering::Relaxed) {
            break;
        }
    }
    acks
}
