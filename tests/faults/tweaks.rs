//! A disk that is slow and a clock that is wrong, for one process: a small library is loaded into it, which reads from a file how
//! slow, and how wrong, at any time.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::root;

/// The library, made anew for each run.
#[derive(Clone)]
pub struct Library {
    path: PathBuf,
    folder: PathBuf,
}

impl Library {
    /// `None` when there is no C compiler.
    pub fn build(folder: &Path) -> Option<Self> {
        let path = folder.join("tweaks.so");
        let source = root().join("tests/faults/tweaks.c");
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(&path).arg(source);
        match command.output() {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                Some(Self { path, folder: folder.to_owned() })
            }
            Err(_) => None,
        }
    }

    /// For one process, of this name.
    pub fn tweaks(&self, name: &str) -> Tweaks {
        let file = self.folder.join(format!("{name}.tweaks"));
        std::fs::write(&file, [0; 16]).unwrap();
        Tweaks { library: self.path.clone(), file }
    }
}

pub struct Tweaks {
    library: PathBuf,
    file: PathBuf,
}

impl Tweaks {
    /// For whoever starts the process.
    pub fn environment(&self) -> [(String, String); 2] {
        let text = |path: &Path| path.display().to_string();
        [("LD_PRELOAD".into(), text(&self.library)), ("FAULTS_TWEAKS".into(), text(&self.file))]
    }

    /// Each flush of the disk takes so much longer.
    pub fn set_flush_ms(&self, ms: u64) {
        self.set(0, i64::try_from(ms).unwrap());
    }

    /// The clock is ahead by so much, or behind.
    pub fn set_clock_ms(&self, ms: i64) {
        self.set(8, ms);
    }

    fn set(&self, at: u64, number: i64) {
        let file = std::fs::File::options().write(true).open(&self.file).unwrap();
        file.write_all_at(&number.to_ne_bytes(), at).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::ledger::now_ms;

    /// What a process makes of the time, in milliseconds since 1970, and how long a flush takes it.
    fn seen(tweaks: &Tweaks) -> (i64, i64) {
        let program = "import os, time\n\
                       file = os.open(os.environ['FAULTS_TWEAKS'], os.O_RDONLY)\n\
                       begun = time.monotonic_ns(); os.fsync(file); took = time.monotonic_ns() - begun\n\
                       print(time.time_ns() // 1_000_000, took // 1_000_000)";
        let mut command = Command::new("python3");
        command.args(["-c", program]).envs(tweaks.environment()).stderr(Stdio::inherit());
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let numbers: Vec<i64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        (numbers[0] - i64::try_from(now_ms()).unwrap(), numbers[1])
    }

    #[test]
    fn a_clock_is_ahead_and_behind_and_a_disk_slow_by_as_much_as_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let Some(library) = Library::build(folder.path()) else { return eprintln!("skipped: there is no C compiler") };
        let tweaks = library.tweaks("test");
        let (ahead, took) = seen(&tweaks);
        assert!(ahead.abs() < 60_000 && took < 60_000, "{ahead} {took}");
        tweaks.set_clock_ms(3_600_500);
        let (ahead, _) = seen(&tweaks);
        assert!((3_500_000..3_700_000).contains(&ahead), "{ahead}");
        tweaks.set_clock_ms(-3_600_500);
        tweaks.set_flush_ms(100);
        let (ahead, took) = seen(&tweaks);
        assert!((-3_700_000..-3_500_000).contains(&ahead), "{ahead}");
        assert!(took >= 100, "{took}");
    }
}
