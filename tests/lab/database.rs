//! PostgreSQL servers in machines of the lab.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::bench::Lab;
use super::node::Node;
use super::process::{run, sh};

/// A folder for servers' files.
pub(crate) fn home(lab: &Lab) -> PathBuf {
    let home = lab.dir.join("postgres");
    fs::create_dir(&home).expect("a folder");
    sh(&format!("chown postgres: {}", home.display()));
    home
}

/// A server that runs in a machine, as the user `postgres`, its files in a folder.
pub(crate) struct Server<'lab> {
    pub(crate) node: &'lab Node,
    pub(crate) programs: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) port: u16,
}

impl<'lab> Server<'lab> {
    pub(crate) fn new(node: &'lab Node, data: PathBuf, port: u16) -> Self {
        Self { node, programs: programs(), data, port }
    }

    /// Makes its files.
    pub(crate) fn init(&self, more: &str) {
        self.pg("initdb", &format!("-D {} -A trust -N {more}", self.data.display()));
    }

    pub(crate) fn pg(&self, program: &str, arguments: &str) -> String {
        let program = self.programs.join(program);
        let line = format!("cd / && runuser -u postgres -- {} {arguments}", program.display());
        self.node.sh(&line)
    }

    pub(crate) fn local(&self) -> String {
        format!("-h {} -p {}", self.sockets(), self.port)
    }

    fn sockets(&self) -> String {
        self.data.parent().expect("a home").display().to_string()
    }

    pub(crate) fn sql(&self, query: &str) -> String {
        let text = self.pg("psql", &format!("{} -XAt -d postgres -c \"{query}\"", self.local()));
        text.trim().to_owned()
    }

    pub(crate) fn add(&self, file: &str, lines: &str) {
        let path = self.data.join(file);
        let old = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, old + "\n" + lines).expect("a file of the database");
    }

    pub(crate) fn up(&self) {
        let (data, log) = (self.data.display(), self.data.with_extension("log"));
        self.pg(
            "pg_ctl",
            &format!(
                "-D {data} -l {} -w -o '-p {} -k {}' start",
                log.display(),
                self.port,
                self.sockets()
            ),
        );
    }

    fn down(&self) {
        let mut command = self.node.command("runuser");
        command.args(["-u", "postgres", "--"]).arg(self.programs.join("pg_ctl"));
        command.args(["-m", "immediate", "stop", "-D"]).arg(&self.data).current_dir("/");
        let _ = run(&mut command, Duration::from_secs(10));
    }
}

/// Ends with its story, and says what it said if that went wrong.
impl Drop for Server<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.data.with_extension("log")).unwrap_or_default();
            println!("postgres on {}:", self.node.name);
            let lines: Vec<&str> = log.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(20)) {
                println!("  {line}");
            }
        }
        self.down();
    }
}

/// Where this distribution keeps the server's programs, the newest version first.
fn programs() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|folder| folder.join("initdb").is_file())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no PostgreSQL server under /usr/lib/postgresql"))
}
