//! Files as the client commands read and write them: none is read without an end, and what stands where one is written stays
//! what it is.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use taskyard_shared::process::exit::Exit;
use tempfile::NamedTempFile;

use crate::client::Failure;

/// Symbolic links that are followed to where a file is to be; as many as Linux does.
const LINKS: usize = 40;

/// All of a file of at most `most` bytes; `-` is standard input.
pub fn read_whole(place: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    if place == Path::new("-") { read(&mut io::stdin().lock(), place, most) } else { read_file(place, most) }
}

/// The same, where standard input is not meant.
pub fn read_file(place: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    read(&mut File::open(place).map_err(|error| unread(place, &error))?, place, most)
}

fn read(source: &mut dyn Read, place: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    source.take(most as u64 + 1).read_to_end(&mut content).map_err(|error| unread(place, &error))?;
    if content.len() > most {
        let problem = format!("{} is longer than {most} bytes, and no more is taken", place.display());
        return Err(Failure::new(Exit::Usage, problem));
    }
    Ok(content)
}

fn unread(place: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Usage, format!("{} cannot be read: {error}", place.display()))
}

/// Where what is downloaded goes.
pub enum Target {
    /// Beside its place until it is whole: what stood there stays if it does not come.
    File {
        whole: NamedTempFile,
        place: PathBuf,
    },
    /// A device, a pipe: what is no file is written to, and not replaced.
    Through(File),
    Stdout,
}

impl Target {
    pub fn open(path: &Path) -> io::Result<Self> {
        let found = match fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::new_file(linked(path)?),
            Err(error) => return Err(error),
        };
        // By any of its names, such as /dev/stdout: what it is opened for is not known by them, nor where in it to go on.
        if is_stdout(&found) {
            return Ok(Self::Stdout);
        }
        if !found.is_file() {
            return OpenOptions::new().write(true).open(path).map(Self::Through);
        }
        let place = fs::canonicalize(path)?;
        let whole = NamedTempFile::new_in(folder(&place))?;
        let made = whole.as_file().metadata()?;
        if (made.uid(), made.gid()) != (found.uid(), found.gid()) {
            // Only the superuser may give files away; whoever else replaces another's has it.
            let _not_allowed = fchown(whole.as_file(), Some(found.uid()), Some(found.gid()));
        }
        whole.as_file().set_permissions(Permissions::from_mode(found.mode() & 0o777))?;
        Ok(Self::File { whole, place })
    }

    fn new_file(place: PathBuf) -> io::Result<Self> {
        // The system takes from it what the umask says.
        let everybody = Permissions::from_mode(0o666);
        let whole = tempfile::Builder::new().permissions(everybody).tempfile_in(folder(&place))?;
        Ok(Self::File { whole, place })
    }

    pub fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        match self {
            Self::File { whole, .. } => whole.write_all(chunk),
            Self::Through(file) => file.write_all(chunk),
            Self::Stdout => io::stdout().write_all(chunk),
        }
    }

    /// All of it has come.
    pub fn finish(self) -> io::Result<()> {
        match self {
            Self::File { whole, place } => {
                whole.as_file().sync_all()?;
                whole.persist(place).map_err(|failure| failure.error)?;
                Ok(())
            }
            Self::Through(_) => Ok(()),
            Self::Stdout => io::stdout().flush(),
        }
    }
}

/// Where links lead that end at what is not there yet.
fn linked(path: &Path) -> io::Result<PathBuf> {
    let mut place = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&place) {
            Ok(next) => place = folder(&place).join(next),
            Err(_) => return Ok(place),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

fn folder(place: &Path) -> &Path {
    place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_stdout(found: &Metadata) -> bool {
    let standing = io::stdout().as_fd().try_clone_to_owned().and_then(|stdout| File::from(stdout).metadata());
    standing.is_ok_and(|stdout| (stdout.dev(), stdout.ino()) == (found.dev(), found.ino()))
}
