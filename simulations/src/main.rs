//! Arguments, what is printed, and the exit code of the simulator.
//!
//! The only place with a stopwatch: it measures how fast the simulation runs, and decides nothing in it.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use simulations::run::{Outcome, run};
use simulations::swarm::Swarm;
use simulations::{draw, report};

/// Breaks a simulated cluster in every way there is and checks what it promised.
#[derive(Parser)]
struct Arguments {
    /// The seed of the run, or the first of a swarm.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run this many seeds of the mixed swarm.
    #[arg(long, value_name = "SEEDS")]
    swarm: Option<u64>,
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
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let arguments = Arguments::parse();
    #[cfg(feature = "mutants")]
    if arguments.mutants {
        return hunt_mutants();
    }
    match arguments.swarm {
        Some(seeds) => swarm(&arguments, seeds),
        None => one(&arguments),
    }
}

fn one(arguments: &Arguments) -> ExitCode {
    println!("seed: {}", arguments.seed);
    let started = Instant::now();
    let outcome = run(draw::mixed(arguments.seed), true, &mut |_| {});
    print!("{}", report::summary(&outcome, started.elapsed()));
    end(&outcome, &format!("--seed {}", outcome.seed))
}

fn end(outcome: &Outcome, replay: &str) -> ExitCode {
    if let Some(violation) = &outcome.violation {
        println!("violated: {violation}");
        println!("replay: cargo run --release -p simulations -- {replay}");
    }
    println!("trace: {:016x}", outcome.trace);
    if outcome.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn progress_bar(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left").expect("a good template");
    ProgressBar::new(length).with_style(style)
}

fn swarm(arguments: &Arguments, seeds: u64) -> ExitCode {
    println!("seed: {}", arguments.seed);
    let started = Instant::now();
    let limit = Duration::from_secs(arguments.minutes * 60);
    let bar = progress_bar(seeds);
    let found = Swarm {
        first_seed: arguments.seed,
        seeds,
        threads: arguments.threads.max(1),
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
        println!("replay: cargo run --release -p simulations -- --seed {}", outcome.seed);
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

#[cfg(feature = "mutants")]
fn hunt_mutants() -> ExitCode {
    use kinfolk::core::mutants::Mutant;
    use simulations::swarm::{MUTANT_TIME, mutants};

    println!("seed: 1");
    let mut rows = Vec::new();
    for (mutant, name, what) in Mutant::ALL {
        let started = Instant::now();
        let row = mutants::hunt(*mutant, name, what, &|| started.elapsed() > MUTANT_TIME);
        eprintln!("{name}: {:?} after {:.1} s", row.found, started.elapsed().as_secs_f64());
        rows.push(row);
    }
    let table = mutants::table(&rows);
    println!("{table}");
    let kept = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("MUTANTS.md");
    if let Err(error) = std::fs::write(&kept, &table) {
        println!("{} cannot be written: {error}", kept.display());
        return ExitCode::FAILURE;
    }
    println!("trace: {:016x}", simulations::rng::mix(rows.len() as u64));
    if rows.iter().all(|row| row.found.is_some()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
