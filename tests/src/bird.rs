//! BIRD 2 in a network namespace of somebody else.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kernel::netns::Netns;

use crate::bed::{eventually, output, text};

/// Whether it is installed.
pub fn is_here() -> bool {
    Command::new("bird").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

pub struct Bird {
    netns: Netns,
    folder: PathBuf,
    child: Option<Child>,
}

impl Bird {
    /// Runs with `config`; its files are in `folder`, which is its own.
    ///
    /// # Panics
    /// Where it does not.
    pub fn start(netns: Netns, folder: PathBuf, config: &str) -> Self {
        std::fs::create_dir_all(&folder).expect("a folder for BIRD's files");
        let mut bird = Self { netns, folder, child: None };
        bird.write(config);
        bird.spawn(&[]);
        bird
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn write(&self, config: &str) {
        std::fs::write(self.path("bird.conf"), config).expect("BIRD's folder takes a file");
    }

    fn spawn(&mut self, words: &[&str]) {
        let log = File::options().create(true).append(true).open(self.path("log")).expect("a log file");
        let mut command = Command::new("bird");
        command.args(["-f", "-c", &self.path("bird.conf"), "-s", &self.path("ctl")]).args(words).stderr(log);
        let child = self.netns.run(|| command.spawn()).expect("the namespace is there");
        self.child = Some(child.expect("BIRD is there: hack/packages"));
        eventually("BIRD to answer", Duration::from_secs(20), || {
            self.ask("show status").contains("up and running").then_some(())
        });
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// After `kill`, as one that comes back and whose peers kept its routes (graceful restart).
    pub fn recover(&mut self) {
        self.spawn(&["-R"]);
    }

    /// Goes on with another configuration.
    pub fn configure(&self, config: &str) {
        self.write(config);
        let said = self.ask("configure");
        assert!(said.contains("Reconfigured") || said.contains("Reconfiguration in progress"), "{said}");
    }

    /// What birdc answers.
    pub fn ask(&self, words: &str) -> String {
        let socket = self.path("ctl");
        text(&output("birdc", &[&["-s", &socket], &words.split(' ').collect::<Vec<_>>()[..]].concat()).stdout)
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("BIRD said last:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            eprintln!("{}", self.ask("show protocols"));
        }
        self.kill();
    }
}
