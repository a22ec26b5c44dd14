//! Arguments, what is printed, and the exit code of the simulator.
//!
//! The only place with a stopwatch: it measures how fast the simulation runs, and decides nothing in it.

#![expect(clippy::disallowed_methods, reason = "a stopwatch beside the simulation, which never sees it")]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use simulations::check::Check;
use simulations::clock::SECOND;
use simulations::history::{History, VerifyMode};
use simulations::page::Subject;
use simulations::run::run;
use simulations::shrink::{Kept, shrink, told};
use simulations::swarm::Swarm;
use simulations::{draw, edge, page, report, scenario};

use crate::pace::Pace;

mod pace;

/// A cluster in one process is millions of small pieces that die in another order than they were born: glibc's
/// allocator took a third of a large run.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many runs may be spent on making a failed history shorter.
const SHRINK_RUNS_MAX: usize = 600;

/// Breaks a simulated cluster in every way there is and checks what it promised.
#[derive(Parser)]
struct Arguments {
    /// The seed of the run, or the first of a swarm.
    #[arg(long)]
    seed: Option<u64>,
    /// Run a scenario: the name of an included one, or a TOML file.
    #[arg(long, value_name = "NAME", conflicts_with = "swarm")]
    scenario: Option<String>,
    /// Keep only these writes and faults of the history: what the shrinker printed.
    #[arg(long, value_name = "WRITES;FAULTS", conflicts_with = "swarm")]
    keep: Option<Kept>,
    /// Write a page with the timeline, the convergence of each family and the bytes of each link.
    #[arg(long, value_name = "FILE", conflicts_with = "swarm")]
    report: Option<PathBuf>,
    /// When a run fails, print what every node believes and does instead of looking for a shorter one.
    #[arg(long, conflicts_with = "swarm")]
    describe: bool,
    /// Whether nodes verify: on, off, or only (streams bring the first copy of a family, verifies all else).
    #[arg(long, value_name = "MODE", conflicts_with = "swarm")]
    verify: Option<VerifyMode>,
    /// Loss between sites, in per cent, instead of the scenario's.
    #[arg(long, value_name = "PER_CENT", requires = "scenario")]
    loss: Option<u64>,
    /// List the included scenarios.
    #[arg(long)]
    list: bool,
    /// Run this many seeds of the mixed swarm.
    #[arg(long, value_name = "SEEDS")]
    swarm: Option<u64>,
    /// Draw histories in which purge floors rise, in every run.
    #[arg(long, conflicts_with_all = ["scenario", "edge"])]
    purging: bool,
    /// Run this many seeds of the edge world: nodes with attached Asterisks.
    #[arg(long, value_name = "SEEDS", conflicts_with_all = ["swarm", "scenario"])]
    edge: Option<u64>,
    /// Run one key and two writers with a crash of either side at every step.
    #[arg(long, conflicts_with_all = ["swarm", "scenario", "edge"])]
    edge_steps: bool,
    /// End a swarm after this many minutes, passed or not run.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// How many threads a swarm uses.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Hunt the planted faults and print the table of what found them.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: bool,
    /// Hunt only the planted faults of these names, and leave the table alone.
    #[cfg(feature = "mutants")]
    #[arg(long, value_name = "NAME")]
    mutant: Vec<String>,
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let arguments = Arguments::parse();
    #[cfg(feature = "mutants")]
    if arguments.mutants || !arguments.mutant.is_empty() {
        return hunt_mutants(&arguments.mutant);
    }
    if arguments.list {
        for (name, text) in scenario::INCLUDED {
            let about = text.lines().next().unwrap_or_default().trim_start_matches("about = ").trim_matches('"');
            println!("{name:<24} {about}");
        }
        return ExitCode::SUCCESS;
    }
    if arguments.edge_steps {
        return edge_steps();
    }
    if let Some(seeds) = arguments.edge {
        return edge_swarm(&arguments, seeds);
    }
    match arguments.swarm {
        Some(seeds) => swarm(&arguments, seeds),
        None => one(&arguments),
    }
}

/// The arguments that name a drawn history.
fn replay(seed: u64, purging: bool) -> String {
    format!("--seed {seed}{}", if purging { " --purging" } else { "" })
}

/// The history to run, and what is told of it: with the arguments that name it.
fn history(arguments: &Arguments) -> Result<(History, Subject), String> {
    let Some(name) = &arguments.scenario else {
        let seed = arguments.seed.unwrap_or(1);
        let (title, about) = (format!("Seed {seed}"), "A cluster and its misfortunes, drawn from a seed.".to_owned());
        let replay = replay(seed, arguments.purging);
        return Ok((draw::history(seed, arguments.purging), Subject { title, about, sites: Vec::new(), replay }));
    };
    let included = scenario::INCLUDED.iter().find(|(included, _)| included == name);
    let text = match included {
        Some((_, text)) => (*text).to_owned(),
        None => std::fs::read_to_string(name)
            .map_err(|error| format!("'{name}' is no included scenario (see --list), and as a file: {error}"))?,
    };
    let history = scenario::read(&text, arguments.seed).map_err(|error| format!("scenario '{name}': {error}"))?;
    let mut history = history;
    let mut replay = format!("--scenario {name} --seed {}", history.seed);
    if let Some(per_cent) = arguments.loss {
        history.links.far_loss_per_mille = per_cent * 10;
        replay += &format!(" --loss {per_cent}");
    }
    let (about, sites) = scenario::told(&text);
    Ok((history, Subject { title: name.clone(), about, sites, replay }))
}

fn one(arguments: &Arguments) -> ExitCode {
    let (whole, mut subject) = match history(arguments) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    println!("seed: {}", whole.seed);
    let kept = arguments.keep.clone().unwrap_or_else(|| Kept::all(&whole));
    if arguments.keep.is_some() {
        subject.replay += &format!(" --keep '{kept}'");
    }
    let mut history = kept.of(&whole);
    if let Some(mode) = arguments.verify {
        history.verify.mode = mode;
        subject.replay += &format!(" --verify {}", format!("{mode:?}").to_lowercase());
    }
    let started = Instant::now();
    let (bar, end_us) = (progress_bar(history.heal_at_us / SECOND, "s of virtual time"), history.heal_at_us);
    let mut pace = Pace::new(&history);
    let outcome = run(history, true, &mut |world| {
        bar.set_position(world.now.min(end_us) / SECOND);
        pace.note(world);
    });
    bar.finish_and_clear();
    print!("{}{}", report::summary(&outcome, started.elapsed()), pace.told(outcome.virtual_us));
    if let Some(world) = outcome.world.as_ref().filter(|world| world.history.checking.spread) {
        print!("{}{}", world.mending_table(), world.spread_table());
    }
    if let (Some(file), Some(world)) = (&arguments.report, &outcome.world) {
        if let Err(error) = std::fs::write(file, page::page(&subject, &outcome, world)) {
            eprintln!("{} cannot be written: {error}", file.display());
            return ExitCode::from(2);
        }
        println!("report: {}", file.display());
    }
    if let Some(violation) = &outcome.violation {
        println!("violated: {violation}");
        if arguments.describe
            && let Some(world) = &outcome.world
        {
            print!("{}", world.describe_streams());
        }
        if arguments.keep.is_none() && !arguments.describe {
            tell_shortest(&whole, violation.check, &subject.replay);
        }
        println!("commit: {}", commit());
        println!("replay: cargo run --release -p simulations -- {}", subject.replay);
    }
    println!("trace: {:016x}", outcome.trace);
    if outcome.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The version of the program that failed, where git knows it.
fn commit() -> String {
    let asked = std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let text = asked.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    text.map_or("unknown".to_owned(), |text| String::from_utf8_lossy(&text).trim().to_owned())
}

fn tell_shortest(history: &History, check: Check, replay: &str) {
    let shortest = shrink(history, check, SHRINK_RUNS_MAX);
    println!("shortest: {} writes and {} faults still break it", shortest.writes.len(), shortest.faults.len());
    print!("{}", told(history, &shortest));
    println!("shortest replay: cargo run --release -p simulations -- {replay} --keep '{shortest}'");
}

fn progress_bar(length: u64, of: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = format!("{{bar:40}} {{pos}}/{{len}} {of}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("a good template");
    ProgressBar::new(length).with_style(style)
}

fn swarm(arguments: &Arguments, seeds: u64) -> ExitCode {
    let first_seed = arguments.seed.unwrap_or(1);
    println!("seed: {first_seed}");
    let started = Instant::now();
    let limit = Duration::from_secs(arguments.minutes * 60);
    let bar = progress_bar(seeds, "seeds");
    let found = Swarm {
        first_seed,
        seeds,
        threads: arguments.threads.max(1),
        purging: arguments.purging,
        enough: &|| started.elapsed() > limit,
        progress: &|done| bar.set_position(done),
    }
    .run();
    bar.finish_and_clear();
    let took = started.elapsed();
    let (runs, virtual_s) = (found.coverage.runs, found.coverage.virtual_s);
    println!("{runs} of {seeds} seeds in {:.1} s, {virtual_s} s of virtual time", took.as_secs_f64());
    print!("{}", found.coverage.table());
    for outcome in &found.failures {
        let violation = outcome.violation.as_ref().expect("it failed");
        println!("violated: seed {}: {violation}", outcome.seed);
        println!("replay: cargo run --release -p simulations -- {}", replay(outcome.seed, arguments.purging));
    }
    // A hole is only one where there was time to fill it.
    let holes = if runs >= 1_000 { found.coverage.holes() } else { Vec::new() };
    for hole in &holes {
        println!("never happened: {hole}");
    }
    if runs < seeds && found.failures.is_empty() {
        println!("the time was up before all seeds had run");
    }
    println!("trace: {:016x}", found.trace);
    let good = found.failures.is_empty() && holes.is_empty() && runs == seeds;
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn edge_steps() -> ExitCode {
    println!("seed: 1");
    let started = Instant::now();
    let result = edge::steps::everything();
    match &result {
        Ok(runs) => println!("{runs} crashes in {:.1} s, each check held", started.elapsed().as_secs_f64()),
        Err((what, violation)) => {
            println!("violated: {what}: {violation}");
            println!("replay: cargo run --release -p simulations -- --edge-steps");
        }
    }
    println!("trace: {:016x}", edge::run(edge::steps::quiet_pair(20, vec![(12_000, edge::steps::put(0))])).trace);
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn edge_swarm(arguments: &Arguments, seeds: u64) -> ExitCode {
    let first_seed = arguments.seed.unwrap_or(1);
    println!("seed: {first_seed}");
    let started = Instant::now();
    let limit = Duration::from_secs(arguments.minutes * 60);
    let bar = progress_bar(seeds, "seeds");
    let found = edge::swarm(first_seed, seeds, arguments.threads.max(1), &|| started.elapsed() > limit, &|done| {
        bar.set_position(done);
    });
    bar.finish_and_clear();
    println!("{} of {seeds} seeds in {:.1} s", found.runs, started.elapsed().as_secs_f64());
    println!("{:?}", found.stats);
    if let Some((seed, violation)) = &found.failure {
        println!("violated: seed {seed}: {violation}");
        println!("replay: cargo run --release -p simulations -- --edge 1 --seed {seed}");
    }
    println!("trace: {:016x}", found.trace);
    if found.failure.is_none() && found.runs == seeds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(feature = "mutants")]
fn hunt_mutants(only: &[String]) -> ExitCode {
    use kinfolk::core::mutants::Mutant;
    use simulations::swarm::{MUTANT_TIME, mutants};

    println!("seed: 1");
    let mut rows = Vec::new();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    for (mutant, name, what) in Mutant::ALL.iter().filter(|(_, name, _)| wanted(name)) {
        let started = Instant::now();
        let row = mutants::hunt(*mutant, name, what, &|| started.elapsed() > MUTANT_TIME);
        eprintln!("{name}: {:?} after {:.1} s", row.found, started.elapsed().as_secs_f64());
        rows.push(row);
    }
    let table = mutants::table(&rows);
    println!("{table}");
    let kept = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("MUTANTS.md");
    if only.is_empty()
        && let Err(error) = std::fs::write(&kept, &table)
    {
        println!("{} cannot be written: {error}", kept.display());
        return ExitCode::FAILURE;
    }
    println!("trace: {:016x}", simulations::rng::mix(rows.len() as u64));
    if rows.iter().all(|row| row.found.is_some()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
