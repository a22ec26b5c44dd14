//! The report as one page: no script, nothing loaded from elsewhere, drawings as SVG.

use std::fmt::Write;

use crate::clock::{SECOND, Us};
use crate::history::HostId;
use crate::report;
use crate::run::Outcome;
use crate::world::World;

const WIDTH: u64 = 900;
/// Room for names at the left of each drawing.
const LEFT: u64 = 170;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:#1c2733;max-width:1100px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;\
text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}svg{display:block;max-width:100%}\
text{font:12px system-ui,sans-serif;fill:#1c2733}.axis{stroke:#9aa7b4}.ok{color:#14713d}.bad{color:#b3261e}\
code{background:#eef1f4;padding:.1rem .3rem}.note{color:#5a6875}";

/// The whole page.
pub fn page(replay: &str, outcome: &Outcome, world: &World) -> String {
    let verdict = match &outcome.violation {
        None => "<p class=ok>Every check held.</p>".to_owned(),
        Some(violation) => format!("<p class=bad>Violated: {}</p>", escape(&violation.to_string())),
    };
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Kinfolk simulation</title><style>{STYLE}</style><h1>Kinfolk simulation, seed {}</h1>{verdict}\
         <p>Run it again: <code>cargo run --release -p simulations -- {}</code></p>\
         <h2>Summary</h2>{}<h2>Faults over time</h2>{}\
         <h2>Convergence of each family</h2><p class=note>Copies of keys that do not hold the winner yet, over time. \
         The dashed line is where everything is mended.</p>{}<h2>Bytes of each link</h2>{}<p class=note>trace {:016x}</p></html>\n",
        outcome.seed,
        escape(replay),
        summary(outcome),
        timeline(world),
        curves(world),
        links(world),
        outcome.trace,
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn summary(outcome: &Outcome) -> String {
    let row = |(name, value): (&str, String)| format!("<tr><td>{name}<td>{}", escape(&value));
    format!("<table>{}</table>", report::rows(outcome).into_iter().map(row).collect::<String>())
}

fn x_of(at: Us, end: Us) -> u64 {
    LEFT + at.min(end) * (WIDTH - LEFT - 40) / end.max(1)
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
            "<line class=axis x1={x} x2={x} y1={bottom} y2={}></line><text x={x} y={} text-anchor=middle>{} s</text>",
            bottom + 5,
            bottom + 18,
            tick * step
        );
    }
    let _ = write!(svg, "<line class=axis x1={LEFT} x2={} y1={bottom} y2={bottom}></line>", WIDTH - 10);
    svg
}

fn mended(world: &World, height: u64) -> String {
    let x = x_of(world.history.heal_at_us, world.now);
    format!("<line x1={x} x2={x} y1=4 y2={height} stroke=#14713d stroke-dasharray='4 3'></line>")
}

/// One bar for each fault; those that take the network apart stand out.
fn timeline(world: &World) -> String {
    const ROW: u64 = 18;
    let (faults, end, heal) = (&world.history.faults, world.now, world.history.heal_at_us);
    let shown: Vec<_> = faults.iter().take(60).collect();
    let bottom = shown.len() as u64 * ROW + 8;
    let mut bars = String::new();
    for (n, fault) in shown.iter().enumerate() {
        let (from, until) = (x_of(fault.at_us, end), x_of((fault.at_us + fault.for_us).min(heal), end));
        let colour = if fault.kind.is_partition() { "#b3261e" } else { "#7a8794" };
        let y = 6 + n as u64 * ROW;
        let _ = write!(
            bars,
            "<text x={} y={} text-anchor=end>{}</text><rect x={from} y={y} width={} height=12 rx=2 fill={colour}>\
             <title>{}</title></rect>",
            LEFT - 8,
            y + 10,
            escape(&label(&fault.kind)),
            until.saturating_sub(from).max(3),
            escape(&format!("{:?}", fault.kind)),
        );
    }
    let hidden = faults.len() - shown.len();
    let more = if hidden > 0 { format!("<p class=note>and {hidden} more</p>") } else { String::new() };
    if shown.is_empty() {
        return "<p class=note>none</p>".to_owned();
    }
    format!(
        "<svg viewBox='0 0 {WIDTH} {}' width={WIDTH}>{bars}{}{}</svg>{more}",
        bottom + 24,
        axis(end, bottom),
        mended(world, bottom)
    )
}

/// The fault's name and the node it meets.
fn label(kind: &crate::history::FaultKind) -> String {
    let text = format!("{kind:?}");
    let node = text.split("node: ").nth(1).and_then(|rest| rest.split([',', ' ', '}']).next());
    node.map_or(kind.name().to_owned(), |node| format!("{} {node}", kind.name()))
}

fn curves(world: &World) -> String {
    let mut all = String::new();
    for (family, points) in &world.stats.lagging {
        let most = points.iter().map(|(_, lags)| *lags).max().unwrap_or(0).max(1);
        let mut path = String::new();
        let mut last_y = 110;
        for (at, lags) in points {
            let (x, y) = (x_of(*at, world.now), 110 - lags * 100 / most);
            // Between two looks the old number holds.
            let _ = write!(path, "{} {x} {last_y} L {x} {y} ", if path.is_empty() { "M" } else { "L" });
            last_y = y;
        }
        let _ = write!(
            all,
            "<svg viewBox='0 0 {WIDTH} 134' width={WIDTH}><text x={} y=60 text-anchor=end>{}</text>\
             <text x={} y=18 text-anchor=end>{most}</text><text x={} y=112 text-anchor=end>0</text>\
             <path d='{path}' fill=none stroke=#1f5fa8 stroke-width=1.5></path>{}{}</svg>",
            LEFT - 40,
            escape(&world.history.families[*family].name),
            LEFT - 6,
            LEFT - 6,
            axis(world.now, 110),
            mended(world, 110),
        );
    }
    all
}

/// Between single nodes where there are few, else between sites.
fn links(world: &World) -> String {
    let nodes = world.history.nodes.len();
    let by_node = nodes <= 8;
    let sites = world.history.nodes.iter().map(|node| node.site).max().unwrap_or(0) + 1;
    let (count, what) = if by_node { (nodes, "node") } else { (sites, "site") };
    let place = |host: HostId| if by_node { host } else { world.history.nodes[host].site };
    let mut bytes = vec![vec![0_u64; count]; count];
    for from in 0..nodes {
        for to in 0..nodes {
            bytes[place(from)][place(to)] += world.net.bytes_between(from, to);
        }
    }
    let most = bytes.iter().flatten().copied().max().unwrap_or(0).max(1);
    let cell = 62;
    let mut svg = String::new();
    for (from, row) in bytes.iter().enumerate() {
        let y = 30 + from as u64 * 28;
        let _ = write!(svg, "<text x={} y={} text-anchor=end>from {what} {from}</text>", LEFT - 8, y + 18);
        let _ =
            write!(svg, "<text x={} y=20 text-anchor=middle>to {from}</text>", LEFT + from as u64 * cell + cell / 2);
        for (to, bytes) in row.iter().enumerate() {
            let (x, shade) = (LEFT + to as u64 * cell, bytes * 80 / most);
            let _ = write!(
                svg,
                "<rect x={x} y={y} width={} height=26 fill='hsl(212 60% {}%)'></rect><text x={} y={} text-anchor=middle{}>{}</text>",
                cell - 2,
                97 - shade / 2,
                x + cell / 2 - 1,
                y + 17,
                if shade > 50 { " style='fill:#fff'" } else { "" },
                short(*bytes)
            );
        }
    }
    let (width, height) = (LEFT + count as u64 * cell + 10, 40 + count as u64 * 28);
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
