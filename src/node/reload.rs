//! SIGHUP: the configuration is read anew, and what can change while the node runs, changes.
//!
//! Invariants: a configuration or certificate that is not good changes nothing, and the log says why; what was
//! changed in the file but needs a restart is named, never half in force.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::Signal;

use super::{identity_files, seeds, unix_ms};
use crate::cluster::tls::Identity;
use crate::cluster::{Cut, Mesh};
use crate::config::{Cluster, Config, LogFilter};

/// Keys and sections that are in force as soon as they are read anew.
const AT_ONCE: [&str; 4] = ["log", "cluster.seeds", "tls.", "allow."];

/// Puts another filter before the logs.
pub(super) type Logs = Arc<dyn Fn(&LogFilter) + Send + Sync>;

/// One line a message on standard error; `KINFOLK_LOG` filters (`info`, `kinfolk=debug`, …), else the configuration.
pub(super) fn init_logs(filter: &LogFilter) -> Logs {
    use std::io::IsTerminal;
    let builder = tracing_subscriber::fmt().with_env_filter(filter.in_force()).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
    let handle = builder.reload_handle();
    // A second node in one process keeps the first one's logs.
    let _ = builder.try_init();
    Arc::new(move |filter| {
        // It fails only if the logs have ended, and then nobody misses them.
        let _ = handle.reload(filter.in_force());
    })
}

#[derive(Default)]
struct State {
    config: Config,
    fault: Option<String>,
    done: u64,
    failed: u64,
}

/// Reads the configuration anew; clones are the same one.
#[derive(Clone)]
pub(super) struct Reloader {
    mesh: Mesh,
    state: Arc<Mutex<State>>,
}

impl Reloader {
    pub fn new(config: &Config, mesh: Mesh) -> Self {
        let state = State { config: config.clone(), ..State::default() };
        Self { mesh, state: Arc::new(Mutex::new(state)) }
    }

    /// Why the last reload changed nothing, if it did not.
    pub fn fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    pub fn counts(&self) -> [(&'static str, u64); 2] {
        let state = self.lock();
        [("done", state.done), ("failed", state.failed)]
    }

    /// Reloads at each signal, for ever.
    pub async fn on_hang_up(self, mut hang_up: Signal, file: PathBuf, logs: Logs) {
        while hang_up.recv().await.is_some() {
            let (reloader, file, logs) = (self.clone(), file.clone(), logs.clone());
            // Files are read off the async threads.
            let reloaded = tokio::task::spawn_blocking(move || reloader.reload(&file, &logs)).await;
            if let Err(panicked) = reloaded {
                std::panic::resume_unwind(panicked.into_panic());
            }
        }
    }

    fn reload(&self, file: &Path, logs: &Logs) {
        let result = self.try_reload(file, logs);
        let mut state = self.lock();
        match result {
            Ok(config) => {
                state.config = config;
                state.fault = None;
                state.done += 1;
            }
            Err(fault) => {
                tracing::error!("SIGHUP: nothing was changed: {fault}");
                state.fault = Some(fault);
                state.failed += 1;
            }
        }
    }

    fn try_reload(&self, file: &Path, logs: &Logs) -> Result<Config, String> {
        let config = Config::load(file).map_err(|error| error.to_string())?;
        let identity =
            Identity::load_files(&identity_files(&config), unix_ms() / 1_000).map_err(|error| error.to_string())?;
        let expires_unix_s = identity.expires_unix_s();
        let cuts = self.mesh.reload(identity, config.trust()).map_err(|error| error.to_string())?;
        self.mesh.set_seeds(&seeds(&config));
        logs(&config.log);
        let Changes { at_once, at_restart } = changes(&self.lock().config, &config);
        tracing::info!(
            changed = at_once.join(" "),
            certificate_expires_unix_s = expires_unix_s,
            revoked_certificates = self.mesh.identity().revoked(),
            cut = cuts.len(),
            "SIGHUP: certificates, lists and what can change at run time were read anew"
        );
        if !at_restart.is_empty() {
            tracing::warn!(
                keys = at_restart.join(" "),
                "changed in the configuration, but in force only after a restart"
            );
        }
        log_cuts(&cuts);
        // What waits for the restart stays told at each reload until then.
        let running = self.lock().config.clone();
        let cluster = Cluster { seeds: config.cluster.seeds, ..running.cluster };
        Ok(Config { log: config.log, tls: config.tls, allow: config.allow, cluster, ..running })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn log_cuts(cuts: &[Cut]) {
    for Cut { peer, why } in cuts {
        tracing::warn!(%peer, "disconnected: {why}");
    }
}

/// The keys that differ between two configurations.
struct Changes {
    at_once: Vec<String>,
    at_restart: Vec<String>,
}

fn changes(before: &Config, after: &Config) -> Changes {
    let (before, after) = (flat(before), flat(after));
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = keys.into_iter().filter(|key| before.get(*key) != after.get(*key)).cloned();
    let (at_once, at_restart) = changed.partition(|key| AT_ONCE.iter().any(|at_once| key.starts_with(at_once)));
    Changes { at_once, at_restart }
}

/// Every key with its section before it, and its value as text.
fn flat(config: &Config) -> BTreeMap<String, String> {
    let table = toml::Table::try_from(config).expect("a configuration that was read can be written");
    let mut flat = BTreeMap::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(section) => {
                flat.extend(section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value.to_string())));
            }
            value => _ = flat.insert(name, value.to_string()),
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("t", &format!("[cluster]\nadvertise = \"a:1\"\n{text}")).expect("good")
    }

    #[test]
    fn a_change_is_named_by_its_key_and_told_whether_it_waits_for_a_restart() {
        let before = config("[limits]\nbatch_max = 7\n[allow]\n\"*\" = [\"CF\"]\n");
        let after =
            config("seeds = [\"b:1\"]\n[tls]\nca = \"/x\"\n[limits]\nbatch_max = 8\n[shared]\nfoo = \"global\"\n");
        let Changes { at_once, at_restart } = changes(&before, &after);
        assert_eq!(at_once, ["allow.*", "cluster.seeds", "tls.ca"]);
        assert_eq!(at_restart, ["limits.batch_max", "shared.foo"]);
    }

    #[test]
    fn what_did_not_change_is_not_named() {
        let Changes { at_once, at_restart } = changes(&config(""), &config(""));
        assert_eq!((at_once.len(), at_restart.len()), (0, 0));
    }
}
