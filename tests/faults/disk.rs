//! A disk of its own for a process, so that it can be full: some memory that is mounted where that process alone sees it.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What fills it up.
const BALLAST: &str = "ballast";

/// How to come by a place where one may mount: as root, or as somebody who may be root among one's own.
const WAYS: [(&[&str], &[&str]); 2] =
    [(&["-m"], &["-m"]), (&["-U", "-r", "-m"], &["-U", "--preserve-credentials", "-m"])];

pub struct Disk {
    /// It has the mount for as long as it lives, which is until what it reads from ends: also when this process is killed.
    holder: Child,
    folder: PathBuf,
    enter: &'static [&'static str],
}

impl Disk {
    /// Mounts it at `folder`. `None` where that is not allowed.
    pub fn mount(folder: &Path, megabytes: u32) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let script = "mount -t tmpfs -o size=\"$2\"m tmpfs \"$1\" && echo mounted && read never";
        WAYS.into_iter().find_map(|(unshare, enter)| {
            let mut command = Command::new("unshare");
            command.args(unshare).args(["sh", "-c", script, "sh"]).arg(folder).arg(megabytes.to_string());
            command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut holder = command.spawn().ok()?;
            let mut said = String::new();
            let read = BufReader::new(holder.stdout.take()?).read_line(&mut said);
            if read.is_ok() && said.trim() == "mounted" {
                return Some(Self { holder, folder: folder.to_owned(), enter });
            }
            let _reaped = holder.wait();
            None
        })
    }

    /// What to put before a program so that it sees the disk.
    pub fn enter(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        let words = ["nsenter", "-t", &pid].into_iter().chain(self.enter.iter().copied());
        words.map(str::to_owned).chain(["--".to_owned()]).collect()
    }

    /// Where it is seen from outside.
    pub fn outside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.folder.strip_prefix("/").unwrap())
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut ballast =
            std::fs::File::options().create(true).append(true).open(self.outside().join(BALLAST)).unwrap();
        for size in [1 << 20, 4 << 10] {
            let piece = vec![1; size];
            loop {
                match ballast.write_all(&piece) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    pub fn free(&self) {
        std::fs::remove_file(self.outside().join(BALLAST)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _killed = self.holder.kill();
        let _reaped = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_until_there_is_room_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("disk");
        let Some(disk) = Disk::mount(&place, 4) else { return eprintln!("skipped: nothing may be mounted here") };
        let write = || {
            let enter = disk.enter();
            let mut command = Command::new(&enter[0]);
            command.args(&enter[1..]).args(["sh", "-c", "head -c 100000 /dev/zero > \"$1\"/file", "sh"]).arg(&place);
            command.stderr(Stdio::null()).status().unwrap().success()
        };
        assert!(write());
        assert_eq!(std::fs::metadata(disk.outside().join("file")).unwrap().len(), 100_000);
        assert!(!place.join("file").exists(), "it is seen here");
        disk.fill();
        std::fs::remove_file(disk.outside().join("file")).unwrap();
        disk.fill();
        assert!(!write());
        disk.free();
        assert!(write());
    }
}
