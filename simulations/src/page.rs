//! The report as one page: no script, nothing loaded from elsewhere, drawings as SVG.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::clock::{SECOND, Us};
use crate::history::{Fault, FaultKind, HostId};
use crate::report;
use crate::run::Outcome;
use crate::world::World;

const WIDTH: u64 = 1_000;
/// Room for names at the left of each drawing.
const LEFT: u64 = 170;
const RIGHT: u64 = 30;
/// Heights: of the row of one kind of fault, of a family's curve, and between two drawings.
const ROW: u64 = 24;
const CURVE: u64 = 84;
const GAP: u64 = 26;
/// About the width of a letter.
const LETTER: u64 = 7;

const STYLE: &str = "\
:root{--ink:#1c2733;--soft:#5a6875;--line:#d8dee5;--cut:#c2362b;--other:#66788a;--curve:#1f5fa8;--good:#14713d}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);max-width:1040px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .4rem}p{margin:.4rem 0}\
.about{font-size:1.05rem;color:var(--soft);margin:.2rem 0 .8rem}\
.verdict{display:inline-block;padding:.15rem .7rem;border-radius:1rem;font-weight:600}\
.ok{color:var(--good);background:#e4f3ea}.bad{color:#fff;background:var(--cut)}\
.tiles{display:flex;flex-wrap:wrap;gap:.7rem;margin:1.2rem 0 0}\
.tiles div{flex:1 1 9rem;border:1px solid var(--line);border-radius:.5rem;padding:.5rem .8rem;color:var(--soft);font-size:.85rem}\
.tiles b{display:block;font-size:1.35rem;color:var(--ink);font-variant-numeric:tabular-nums}\
svg{display:block;max-width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:var(--ink)}\
.soft{fill:var(--soft)}.axis{stroke:var(--line)}.mended{stroke:var(--good);stroke-dasharray:4 3}\
.band{fill:var(--cut);opacity:.08}.cut{fill:var(--cut)}.other{fill:var(--other)}.on{fill:#fff;font-size:11px}\
.area{fill:var(--curve);opacity:.16}.curve{fill:none;stroke:var(--curve);stroke-width:1.6}\
table{border-collapse:collapse;font-size:.92rem}td{padding:.15rem 1.2rem .15rem 0;vertical-align:top}td+td{color:var(--soft)}\
code{background:#eef1f4;padding:.1rem .3rem;border-radius:.2rem}.note{color:var(--soft);font-size:.92rem}";

/// What the page is about.
pub struct Subject {
    pub title: String,
    pub about: String,
    /// The names of the sites, where they have any.
    pub sites: Vec<String>,
    /// The arguments that run it again.
    pub replay: String,
}

/// The whole page.
pub fn page(subject: &Subject, outcome: &Outcome, world: &World) -> String {
    let verdict = match &outcome.violation {
        None => "<p class='verdict ok'>Every check held</p>".to_owned(),
        Some(violation) => format!("<p class='verdict bad'>Violated: {}</p>", escape(&violation.to_string())),
    };
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Kinfolk: {title}</title><style>{STYLE}</style><h1>{title}</h1><p class=about>{about}</p>{verdict}{tiles}\
         <h2>What broke, and who lagged</h2><p class=note>Above, the faults; red ones take the network apart. Below, for each \
         family, how many copies of a key on some node did not hold its latest value. The dashed line is where everything is \
         mended.</p>{story}<h2>What crossed the links</h2>{links}<h2>The run in figures</h2>{summary}\
         <p class=note>Run it again: <code>cargo run --release -p simulations -- {replay}</code> gives the trace \
         <code>{trace:016x}</code>.</p></html>\n",
        title = escape(&subject.title),
        about = escape(&subject.about),
        tiles = tiles(outcome),
        story = story(subject, world),
        links = links(subject, world),
        summary = summary(outcome),
        replay = escape(&subject.replay),
        trace = outcome.trace,
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What one wants to know first.
fn tiles(outcome: &Outcome) -> String {
    let stats = &outcome.stats;
    let equal = stats.converged_after_us.map_or("–".to_owned(), |us| format!("{:.1} s", us as f64 / SECOND as f64));
    let tiles = [
        (stats.writes.to_string(), "inputs acknowledged"),
        (stats.unanswered.to_string(), "not answered: node down or commit failed"),
        (outcome.branches.lost.to_string(), "arrivals that lost to a later write"),
        (equal, "until all were equal after the mending"),
        (short(outcome.bytes), "sent between nodes"),
    ];
    let tile = |(value, of): (String, &str)| format!("<div><b>{value}</b>{of}</div>");
    format!("<div class=tiles>{}</div>", tiles.into_iter().map(tile).collect::<String>())
}

fn summary(outcome: &Outcome) -> String {
    let row = |(name, value): (&str, String)| format!("<tr><td>{name}<td>{}", escape(&value));
    format!("<table>{}</table>", report::rows(outcome).into_iter().map(row).collect::<String>())
}

fn x_of(at: Us, end: Us) -> u64 {
    LEFT + at.min(end) * (WIDTH - LEFT - RIGHT) / end.max(1)
}

/// Faults and curves over one axis of time, so that one sees what did what.
fn story(subject: &Subject, world: &World) -> String {
    let (rows, faults_bottom) = faults(subject, world);
    let mut bottom = faults_bottom;
    let mut curves = String::new();
    for (family, points) in &world.stats.lagging {
        let top = bottom + GAP;
        bottom = top + CURVE;
        curves += &curve(&world.history.families[*family].name, points, world.now, top);
    }
    let mended = x_of(world.history.heal_at_us, world.now);
    format!(
        "<svg viewBox='0 0 {WIDTH} {}' width={WIDTH}>{}{rows}{curves}\
         <line class=mended x1={mended} x2={mended} y1=4 y2={bottom}></line>{}</svg>",
        bottom + 30,
        bands(world, bottom),
        axis(world.now, bottom),
    )
}

fn until(world: &World, fault: &Fault) -> Us {
    (fault.at_us + fault.for_us).min(world.history.heal_at_us)
}

/// Where the network is apart, through all drawings.
fn bands(world: &World, bottom: u64) -> String {
    let mut svg = String::new();
    for fault in world.history.faults.iter().filter(|fault| fault.kind.is_partition()) {
        let (from, to) = (x_of(fault.at_us, world.now), x_of(until(world, fault), world.now));
        let _ = write!(
            svg,
            "<rect class=band x={from} y=0 width={} height={bottom}></rect>",
            to.saturating_sub(from).max(1)
        );
    }
    svg
}

/// A row for each kind of fault, in the order in which they began, and how far down they reach.
fn faults(subject: &Subject, world: &World) -> (String, u64) {
    let mut kinds: Vec<(&str, Vec<&Fault>)> = Vec::new();
    for fault in &world.history.faults {
        match kinds.iter_mut().find(|(name, _)| *name == fault.kind.name()) {
            Some((_, same)) => same.push(fault),
            None => kinds.push((fault.kind.name(), vec![fault])),
        }
    }
    let mut svg = String::new();
    for (n, (name, same)) in kinds.iter().enumerate() {
        let y = 4 + n as u64 * ROW;
        let times = if same.len() > 1 { format!(" × {}", same.len()) } else { String::new() };
        let _ = write!(svg, "<text x={} y={} text-anchor=end>{name}{times}</text>", LEFT - 12, y + 13);
        for fault in same {
            let (from, to) = (x_of(fault.at_us, world.now), x_of(until(world, fault), world.now));
            let width = to.saturating_sub(from).max(4);
            let class = if fault.kind.is_partition() { "cut" } else { "other" };
            let whom = escape(&whom(subject, world, &fault.kind));
            let _ = write!(
                svg,
                "<g><title>{name}: {whom}</title><rect class={class} x={from} y={y} width={width} height=18 rx=3></rect>"
            );
            if width > 8 + LETTER * whom.chars().count() as u64 {
                let _ = write!(svg, "<text class=on x={} y={}>{whom}</text>", from + 6, y + 13);
            } else if same.len() == 1 {
                let (x, anchor) = beside(from, from + width, whom.chars().count() as u64);
                let _ = write!(svg, "<text class=soft x={x} y={} text-anchor={anchor}>{whom}</text>", y + 13);
            }
            svg += "</g>";
        }
    }
    (svg, 4 + kinds.len() as u64 * ROW)
}

/// Whom a fault meets: nodes, or the sites that are cut off from the rest.
fn whom(subject: &Subject, world: &World, kind: &FaultKind) -> String {
    let node = |host: HostId| node_name(subject, world, host);
    match kind {
        FaultKind::Partition { groups }
        | FaultKind::OneWay { groups }
        | FaultKind::Bridge { groups, .. }
        | FaultKind::Flap { groups, .. } => {
            let mut sides: BTreeMap<u8, Vec<HostId>> = BTreeMap::new();
            for (host, group) in groups.iter().enumerate().take(world.history.nodes.len()) {
                sides.entry(*group).or_default().push(host);
            }
            let side = |hosts: &Vec<HostId>| side_name(subject, world, hosts);
            sides.values().map(side).collect::<Vec<_>>().join(" | ")
        }
        FaultKind::Reset { a, b } | FaultKind::Slow { a, b, .. } => format!("{} – {}", node(*a), node(*b)),
        FaultKind::Suspect { observer, subject: of } | FaultKind::Ghost { observer, subject: of } => {
            format!("{} of {}", node(*observer), node(*of))
        }
        FaultKind::Garbage { from, to, .. } => format!("{} to {}", node(*from), node(*to)),
        FaultKind::Crash { node: host }
        | FaultKind::CrashInCommit { node: host, .. }
        | FaultKind::Wipe { node: host }
        | FaultKind::Snapshot { node: host }
        | FaultKind::Rollback { node: host }
        | FaultKind::OldBackup { node: host }
        | FaultKind::Clone { node: host }
        | FaultKind::Join { node: host }
        | FaultKind::Die { node: host }
        | FaultKind::ClockJump { node: host, .. }
        | FaultKind::ClockAhead { node: host, .. }
        | FaultKind::ClockFreeze { node: host }
        | FaultKind::RestartInPast { node: host, .. }
        | FaultKind::CommitFails { node: host, .. }
        | FaultKind::DiskFull { node: host }
        | FaultKind::Starve { node: host }
        | FaultKind::Upgrade { node: host }
        | FaultKind::NextVersion { node: host } => node(*host),
    }
}

fn site_name(subject: &Subject, site: usize) -> String {
    subject.sites.get(site).cloned().unwrap_or_else(|| format!("site {site}"))
}

/// A node by its site and its number there.
fn node_name(subject: &Subject, world: &World, host: HostId) -> String {
    let nodes = &world.history.nodes;
    // A clone stands behind all others.
    let Some(spec) = nodes.get(host) else { return format!("clone {}", host - nodes.len() + 1) };
    let number = nodes[..host].iter().filter(|other| other.site == spec.site).count() + 1;
    format!("{} {number}", site_name(subject, spec.site))
}

/// Whole sites by their names, where that says it all.
fn side_name(subject: &Subject, world: &World, hosts: &[HostId]) -> String {
    let nodes = &world.history.nodes;
    let sites: std::collections::BTreeSet<usize> = hosts.iter().map(|host| nodes[*host].site).collect();
    let whole = nodes.iter().filter(|spec| sites.contains(&spec.site)).count() == hosts.len();
    let names: Vec<String> = match whole {
        true => sites.into_iter().map(|site| site_name(subject, site)).collect(),
        false => hosts.iter().map(|host| node_name(subject, world, *host)).collect(),
    };
    if names.len() > 4 { format!("{} and {} more", names[..3].join(", "), names.len() - 3) } else { names.join(", ") }
}

/// Where a text of so many letters goes beside something: at its right, or at its left where the right has no room.
fn beside(from: u64, to: u64, letters: u64) -> (u64, &'static str) {
    if to + 6 + LETTER * letters > WIDTH - RIGHT { (from - 6, "end") } else { (to + 6, "start") }
}

/// Moments at round numbers of seconds, about eight of them.
fn axis(end: Us, bottom: u64) -> String {
    let mut svg = String::new();
    let seconds = end / SECOND;
    let steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600];
    let step = steps.into_iter().find(|step| seconds / step <= 9).unwrap_or(43_200);
    for tick in 0..=seconds / step {
        let x = x_of(tick * step * SECOND, end);
        let _ = write!(
            svg,
            "<line class=axis x1={x} x2={x} y1={bottom} y2={}></line>\
             <text class=soft x={x} y={} text-anchor=middle>{} s</text>",
            bottom + 6,
            bottom + 20,
            tick * step
        );
    }
    svg
}

fn curve(name: &str, points: &[(Us, u64)], end: Us, top: u64) -> String {
    let bottom = top + CURVE;
    let most = points.iter().map(|(_, lags)| *lags).max().unwrap_or(0);
    let y_of = |lags: u64| bottom - lags * (CURVE - 12) / most.max(1);
    let mut line = format!("M {LEFT} {bottom}");
    let mut last = (LEFT, bottom);
    for (at, lags) in points {
        // Between two looks the old number holds.
        let (x, y) = (x_of(*at, end), y_of(*lags));
        let _ = write!(line, " L {x} {} L {x} {y}", last.1);
        last = (x, y);
    }
    let peak = points.iter().find(|(_, lags)| *lags == most && most > 0);
    let peak = peak.map_or(String::new(), |(at, lags)| {
        let label = format!("{lags} copies behind");
        let (x, anchor) = beside(x_of(*at, end), x_of(*at, end), label.len() as u64);
        format!("<text class=soft x={x} y={} text-anchor={anchor}>{label}</text>", y_of(*lags) - 4)
    });
    format!(
        "<line class=axis x1={LEFT} x2={} y1={bottom} y2={bottom}></line>\
         <text x={} y={} text-anchor=end>{}</text><text class=soft x={} y={} text-anchor=end>0</text>\
         <path class=area d='{line} L {} {bottom} Z'></path><path class=curve d='{line}'></path>{peak}",
        WIDTH - RIGHT,
        LEFT - 12,
        top + CURVE / 2 + 6,
        escape(name),
        LEFT - 12,
        bottom + 4,
        last.0,
    )
}

/// Between single nodes where there are few, else between sites.
fn links(subject: &Subject, world: &World) -> String {
    const CELL: u64 = 84;
    let nodes = world.history.nodes.len();
    let by_node = nodes <= 9;
    let sites = world.history.nodes.iter().map(|node| node.site).max().unwrap_or(0) + 1;
    let count = if by_node { nodes } else { sites };
    if count > 24 {
        return format!("<p class=note>{count} sites are too many for a table of links.</p>");
    }
    let name = |n| if by_node { node_name(subject, world, n) } else { site_name(subject, n) };
    let place = |host: HostId| if by_node { host } else { world.history.nodes[host].site };
    let mut bytes = vec![vec![0_u64; count]; count];
    for from in 0..nodes {
        for to in 0..nodes {
            bytes[place(from)][place(to)] += world.net.bytes_between(from, to);
        }
    }
    let most = bytes.iter().flatten().copied().max().unwrap_or(0).max(1);
    let mut svg = format!("<text class=soft x={} y=20 text-anchor=end>from ↓ to →</text>", LEFT - 12);
    for (from, row) in bytes.iter().enumerate() {
        let y = 30 + from as u64 * 28;
        let column = LEFT + from as u64 * CELL + CELL / 2;
        let _ = write!(svg, "<text x={} y={} text-anchor=end>{}</text>", LEFT - 12, y + 17, escape(&name(from)));
        let _ = write!(svg, "<text x={column} y=20 text-anchor=middle>{}</text>", escape(&name(from)));
        for (to, bytes) in row.iter().enumerate() {
            let (x, shade) = (LEFT + to as u64 * CELL, bytes * 80 / most);
            let _ = write!(
                svg,
                "<rect x={x} y={y} width={} height=26 rx=3 fill='hsl(212 55% {}%)'></rect>\
                 <text x={} y={} text-anchor=middle{}>{}</text>",
                CELL - 2,
                97 - shade * 5 / 8,
                x + CELL / 2 - 1,
                y + 17,
                if shade > 45 { " style='fill:#fff'" } else { "" },
                short(*bytes)
            );
        }
    }
    let (width, height) = (LEFT + count as u64 * CELL + 10, 40 + count as u64 * 28);
    format!("<svg viewBox='0 0 {width} {height}' width={width}>{svg}</svg>")
}

fn short(bytes: u64) -> String {
    match bytes {
        0 => "–".to_owned(),
        1..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{run, scenario};

    #[test]
    fn the_page_stands_alone_and_names_sites_faults_and_families() {
        let (_, text) = scenario::INCLUDED.iter().find(|(name, _)| *name == "split-brain").expect("it is included");
        let history = scenario::read(text, None).expect("a scenario");
        let (about, sites) = scenario::told(text);
        let outcome = run::run(history, true, &mut |_| {});
        let world = outcome.world.as_ref().expect("it did not panic");
        let subject = Subject { title: "a < b".into(), about, sites, replay: "--seed 1".into() };
        let page = page(&subject, &outcome, world);
        for wanted in
            ["a &lt; b", "Every check held", "west | east", ">foo<", ">uni<", "east 1", "copies behind", "--seed 1"]
        {
            assert!(page.contains(wanted), "{wanted} is not there");
        }
        for foreign in ["http", "<script", "<link", "url("] {
            assert!(!page.contains(foreign), "{foreign} is there");
        }
    }
}
