//! Files that tasks leave and take: models, data, checkpoints. They lie in an object store, or in a folder.
//!
//! An artifact is named by its content, so it never changes, is kept once however often it is put, and is checked when it
//! is read. What does change, such as a checkpoint, is a note: bytes under a name.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutPayload};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

/// Before the hexadecimal digits, where an artifact is named in a task or a result.
pub const SCHEME: &str = "artifact:";

/// The largest artifact that is read or written as one piece; bytes.
pub const ARTIFACT_BYTES: u64 = 1 << 30;

/// An artifact's name: the SHA-256 of its content. As text `artifact:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactId([u8; 32]);

/// An artifact as tasks and results name it: `{"$ref": "artifact:…"}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    #[serde(rename = "$ref")]
    pub to: ArtifactId,
}

impl ArtifactId {
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }

    /// 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for ArtifactId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}", self.hex())
    }
}

impl fmt::Debug for ArtifactId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for ArtifactId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || format!("must be {SCHEME} and 64 hexadecimal digits");
        let digits = text.strip_prefix(SCHEME).ok_or_else(problem)?;
        if digits.len() != 64 || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(problem());
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(problem)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for ArtifactId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ArtifactId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where artifacts and notes lie. Clones share it.
#[derive(Clone)]
pub struct Artifacts {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    shown: Arc<str>,
}

impl fmt::Debug for Artifacts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Artifacts").field(&self.shown).finish()
    }
}

/// Why an artifact cannot be had, or kept.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("artifacts.url {0}")]
    Url(String),
    /// Of the operating system.
    #[error("artifacts cannot be kept in {0}")]
    Folder(String),
    #[error("there is no {0}")]
    Missing(String),
    #[error("{name} has {bytes} bytes, and at most {most} are taken")]
    TooLarge { name: String, bytes: u64, most: u64 },
    #[error("{0} is not what it was when it was put: its content has another checksum")]
    Spoilt(String),
    #[error("artifacts cannot be reached: {0}")]
    Unreachable(String),
}

impl ArtifactError {
    /// Whether trying again later can help without anybody changing something.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

/// Where a URL leads.
enum Place {
    Folder(PathBuf),
    Elsewhere(Url),
}

impl Place {
    /// By what the URL says alone. A problem never holds any part of it: there may be a password.
    fn read(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|problem| format!("must be a URL such as file:///FOLDER: {problem}"))?;
        if url.scheme() == "file" {
            // A relative one would be taken from the root, which nobody means.
            let is_absolute = text.split_once(':').is_some_and(|(_, rest)| rest.starts_with('/'));
            let folder = url
                .to_file_path()
                .ok()
                .filter(|folder| is_absolute && !folder.as_os_str().as_encoded_bytes().contains(&0));
            return folder
                .map(Self::Folder)
                .ok_or_else(|| "must be file:///FOLDER, with a path from the root".to_owned());
        }
        let (feature, is_there) = match ObjectStoreScheme::parse(&url) {
            Ok((ObjectStoreScheme::AmazonS3, _)) => ("s3", cfg!(feature = "s3")),
            Ok((ObjectStoreScheme::GoogleCloudStorage, _)) => ("gcs", cfg!(feature = "gcs")),
            Ok((ObjectStoreScheme::MicrosoftAzure, _)) => ("azure", cfg!(feature = "azure")),
            Ok((ObjectStoreScheme::Memory, _)) => ("", true),
            _ => return Err("must be file:///FOLDER, s3://BUCKET, gs://BUCKET or az://CONTAINER".to_owned()),
        };
        match is_there {
            true => Ok(Self::Elsewhere(url)),
            false => Err(format!("cannot be used: this build has no feature {feature}")),
        }
    }
}

/// Whether artifacts can be kept under that URL, by what it says: no more than that is looked at. The problem is a sentence's end.
pub fn check_url(url: &str) -> Result<(), String> {
    Place::read(url).map(drop)
}

impl Artifacts {
    /// `file:///folder`, which is made if it is not there, or where the build has it `s3://bucket/prefix`, `gs://…`, `az://…`
    /// with what the environment says of access (`AWS_…`, `GOOGLE_…`, `AZURE_…`).
    ///
    /// # Errors
    /// When nothing can be kept under that URL by what it says; nothing is connected to.
    pub fn open(url: &str) -> Result<Self, ArtifactError> {
        let url = match Place::read(url).map_err(ArtifactError::Url)? {
            Place::Folder(folder) => return Self::in_folder(&folder),
            Place::Elsewhere(url) => url,
        };
        let environment = std::env::vars().map(|(name, value)| (name.to_ascii_lowercase(), value));
        let (store, prefix) = object_store::parse_url_opts(&url, environment)
            .map_err(|problem| ArtifactError::Url(format!("cannot be used: {problem}")))?;
        // Neither user nor query, where people put secrets.
        let shown = format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path());
        Ok(Self { store: store.into(), prefix, shown: shown.into() })
    }

    /// Gone with the process.
    pub fn in_memory() -> Self {
        Self { store: Arc::new(object_store::memory::InMemory::new()), prefix: Path::default(), shown: "memory".into() }
    }

    /// # Errors
    /// When the folder cannot be made.
    pub fn in_folder(folder: &FilePath) -> Result<Self, ArtifactError> {
        let problem = |problem: &dyn fmt::Display| ArtifactError::Folder(format!("{}: {problem}", folder.display()));
        std::fs::create_dir_all(folder).map_err(|failure| problem(&failure))?;
        let store =
            object_store::local::LocalFileSystem::new_with_prefix(folder).map_err(|failure| problem(&failure))?;
        // What was put is there after a power cut: a result may name it.
        let store = store.with_fsync(true);
        let shown = folder.display().to_string().into();
        Ok(Self { store: Arc::new(store), prefix: Path::default(), shown })
    }

    /// Keeps a content, and answers its name.
    ///
    /// # Errors
    /// When it is too large, or the store does not take it.
    pub async fn put(&self, content: Bytes) -> Result<ArtifactId, ArtifactError> {
        let id = ArtifactId::of(&content);
        self.check_size(id, content.len() as u64, ARTIFACT_BYTES)?;
        self.write(&self.place(id), content).await?;
        Ok(id)
    }

    /// The content of an artifact of at most `most` bytes.
    ///
    /// # Errors
    /// When there is none of that name, it is larger, cannot be reached, or is not what was put.
    pub async fn get(&self, id: ArtifactId, most: u64) -> Result<Bytes, ArtifactError> {
        let content = self.read(&self.place(id), &id.to_string(), most).await?;
        if ArtifactId::of(&content) != id {
            return Err(ArtifactError::Spoilt(id.to_string()));
        }
        Ok(content)
    }

    /// Bytes of an artifact.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be reached.
    pub async fn size(&self, id: ArtifactId) -> Result<u64, ArtifactError> {
        match self.store.head(&self.place(id)).await {
            Ok(object) => Ok(object.size),
            Err(object_store::Error::NotFound { .. }) => Err(ArtifactError::Missing(id.to_string())),
            Err(failure) => Err(unreachable(&failure)),
        }
    }

    /// Keeps bytes under a name, in place of what it named. Names are `/` between parts of `[A-Za-z0-9._-]`.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn put_note(&self, name: &str, content: Bytes) -> Result<(), ArtifactError> {
        self.write(&self.note_place(name), content).await
    }

    /// What a name stands for, if it stands for something.
    ///
    /// # Errors
    /// When it is larger than `most`, or cannot be reached.
    pub async fn note(&self, name: &str, most: u64) -> Result<Option<Bytes>, ArtifactError> {
        match self.read(&self.note_place(name), name, most).await {
            Ok(content) => Ok(Some(content)),
            Err(ArtifactError::Missing(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Forgets a name, if it stands for something.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn remove_note(&self, name: &str) -> Result<(), ArtifactError> {
        match self.store.delete(&self.note_place(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(failure) => Err(unreachable(&failure)),
        }
    }

    /// What was last put so long ago or longer, artifacts and notes; at most `most` of it.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn old(&self, age: Duration, most: usize) -> Result<Vec<Old>, ArtifactError> {
        let mut found = Vec::new();
        for (folder, is_note) in [("sha256", false), ("notes", true)] {
            let mut listed = self.store.list(Some(&self.prefix.clone().join(folder)));
            while let Some(object) = listed.next().await {
                let object = object.map_err(|failure| unreachable(&failure))?;
                let put_ms = object.last_modified.timestamp_millis();
                if age_of(put_ms) < age {
                    continue;
                }
                let id = match is_note {
                    true => None,
                    // What somebody else put there is not ours to remove.
                    false => match object.location.filename().and_then(|hex| format!("{SCHEME}{hex}").parse().ok()) {
                        Some(id) => Some(id),
                        None => continue,
                    },
                };
                found.push(Old { id, place: object.location, put_ms, bytes: object.size });
                if found.len() >= most {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    /// Removes it, unless it was put again since it was found. Answers whether it is gone.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn remove(&self, old: &Old) -> Result<bool, ArtifactError> {
        match self.store.head(&old.place).await {
            Ok(object) if object.last_modified.timestamp_millis() > old.put_ms => return Ok(false),
            Ok(_) => {}
            Err(object_store::Error::NotFound { .. }) => return Ok(true),
            Err(failure) => return Err(unreachable(&failure)),
        }
        match self.store.delete(&old.place).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(true),
            Err(failure) => Err(unreachable(&failure)),
        }
    }

    fn place(&self, id: ArtifactId) -> Path {
        let hex = id.hex();
        let (folder, _) = hex.split_at(2);
        self.prefix.clone().join("sha256").join(folder).join(hex.as_str())
    }

    fn note_place(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone().join("notes"), |path, part| path.join(part))
    }

    fn check_size(&self, name: impl fmt::Display, bytes: u64, most: u64) -> Result<(), ArtifactError> {
        match bytes > most {
            true => Err(ArtifactError::TooLarge { name: name.to_string(), bytes, most }),
            false => Ok(()),
        }
    }

    async fn write(&self, place: &Path, content: Bytes) -> Result<(), ArtifactError> {
        let put = self.store.put(place, PutPayload::from(content)).await;
        put.map(|_| ()).map_err(|failure| unreachable(&failure))
    }

    async fn read(&self, place: &Path, name: &str, most: u64) -> Result<Bytes, ArtifactError> {
        let found = match self.store.get(place).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Err(ArtifactError::Missing(name.to_owned())),
            Err(failure) => return Err(unreachable(&failure)),
        };
        self.check_size(name, found.meta.size, most)?;
        let mut content = Vec::with_capacity(usize::try_from(found.meta.size).unwrap_or_default());
        let mut pieces = found.into_stream();
        while let Some(piece) = pieces.next().await {
            content.extend_from_slice(&piece.map_err(|failure| unreachable(&failure))?);
            // It may have been replaced by a larger one meanwhile.
            self.check_size(name, content.len() as u64, most)?;
        }
        Ok(content.into())
    }
}

/// Something that was last put a while ago.
#[derive(Clone, PartialEq, Debug)]
pub struct Old {
    /// An artifact's; notes have none.
    pub id: Option<ArtifactId>,
    pub bytes: u64,
    place: Path,
    put_ms: i64,
}

/// How long a time since the Unix epoch is over; nothing when it is to come, by this clock.
fn age_of(ms: i64) -> Duration {
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or_default());
    (SystemTime::UNIX_EPOCH + since).elapsed().unwrap_or_default()
}

fn unreachable(failure: &object_store::Error) -> ArtifactError {
    ArtifactError::Unreachable(failure.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifacts() -> (tempfile::TempDir, Artifacts) {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::in_folder(&folder.path().join("not/there/yet")).unwrap();
        (folder, artifacts)
    }

    #[test]
    fn a_url_that_leads_nowhere_is_refused_by_what_it_says() {
        for url in ["file:///a/b", "file:/a", "FILE:///a", "file://localhost/a", "memory:///"] {
            assert_eq!(check_url(url), Ok(()), "{url}");
        }
        let s3 = check_url("s3://s3cret");
        assert_eq!(s3.is_ok(), cfg!(feature = "s3"));
        for url in [
            ":",
            "",
            "a",
            "/a",
            "file:relative",
            "file:",
            "file://host/a",
            "file://relative",
            "file:///a%00b",
            "ftp://b/s3cret",
            "http://s3cret",
            "http://s3cret@x",
            "https://s3cret",
            "s3:s3cret",
        ] {
            let problem = check_url(url).expect_err(url);
            assert!(!problem.contains("s3cret") && !problem.contains('\n'), "{problem}");
            assert!(matches!(Artifacts::open(url), Err(ArtifactError::Url(_))), "{url}");
        }
    }

    #[tokio::test]
    async fn what_is_put_is_named_by_its_content_and_kept() {
        let (_folder, artifacts) = artifacts();
        let id = artifacts.put("abc".into()).await.unwrap();
        assert_eq!(id.to_string(), "artifact:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(artifacts.put("abc".into()).await.unwrap(), id);
        assert_eq!(artifacts.get(id, 3).await.unwrap(), "abc");
        assert_eq!(id.to_string().parse(), Ok(id));
        let reference = Reference { to: id };
        let text = serde_json::to_string(&reference).unwrap();
        assert_eq!(text, format!(r#"{{"$ref":"{id}"}}"#));
        assert_eq!(serde_json::from_str::<Reference>(&text).unwrap(), reference);
    }

    #[tokio::test]
    async fn what_is_not_there_or_not_as_it_was_is_said() {
        let (folder, artifacts) = artifacts();
        let id = artifacts.put("abcd".into()).await.unwrap();
        let too_large = ArtifactError::TooLarge { name: id.to_string(), bytes: 4, most: 3 };
        assert_eq!(artifacts.get(id, 3).await, Err(too_large));
        let missing = ArtifactId::of(b"never put");
        assert_eq!(artifacts.get(missing, 3).await, Err(ArtifactError::Missing(missing.to_string())));

        let hex = id.hex();
        let file = folder.path().join("not/there/yet/sha256").join(&hex[..2]).join(&hex);
        std::fs::write(file, "abce").unwrap();
        assert_eq!(artifacts.get(id, 4).await, Err(ArtifactError::Spoilt(id.to_string())));
    }

    #[tokio::test]
    async fn a_note_can_be_replaced_and_removed() {
        let (_folder, artifacts) = artifacts();
        assert_eq!(artifacts.note("a/b", 9).await, Ok(None));
        artifacts.remove_note("a/b").await.unwrap();
        artifacts.put_note("a/b", "one".into()).await.unwrap();
        artifacts.put_note("a/b", "two".into()).await.unwrap();
        artifacts.put_note("a/../c", "three".into()).await.unwrap();
        assert_eq!(artifacts.note("a/b", 9).await, Ok(Some("two".into())));
        assert_eq!(artifacts.note("c", 9).await, Ok(None));
        artifacts.remove_note("a/b").await.unwrap();
        assert_eq!(artifacts.note("a/b", 9).await, Ok(None));
    }

    #[tokio::test]
    async fn what_is_old_is_found_and_removed_unless_it_was_put_again() {
        let (folder, artifacts) = artifacts();
        let (kept, gone) = (artifacts.put("kept".into()).await.unwrap(), artifacts.put("gone".into()).await.unwrap());
        artifacts.put_note("vectors/a", "note".into()).await.unwrap();
        let file = |id: ArtifactId| folder.path().join("not/there/yet/sha256").join(&id.hex()[..2]).join(id.hex());
        let make_old = |path: &std::path::Path| {
            let day = SystemTime::now() - Duration::from_secs(24 * 3600);
            std::fs::File::options().write(true).open(path).unwrap().set_modified(day).unwrap();
        };
        std::fs::write(file(kept).with_file_name("README"), "not ours").unwrap();
        make_old(&file(kept).with_file_name("README"));
        let hour = Duration::from_secs(3600);
        assert_eq!(artifacts.old(hour, 9).await, Ok(Vec::new()));
        for path in [file(kept), file(gone), folder.path().join("not/there/yet/notes/vectors/a")] {
            make_old(&path);
        }
        let old = artifacts.old(hour, 9).await.unwrap();
        let mut ids: Vec<_> = old.iter().map(|old| old.id).collect();
        ids.sort();
        let mut expected = [None, Some(kept), Some(gone)];
        expected.sort();
        assert_eq!(ids, expected);
        assert_eq!(artifacts.old(hour, 1).await.unwrap().len(), 1);

        artifacts.put("kept".into()).await.unwrap();
        for one in &old {
            assert_eq!(artifacts.remove(one).await, Ok(one.id != Some(kept)));
            assert_eq!(artifacts.remove(one).await, Ok(one.id != Some(kept)), "again");
        }
        assert_eq!(artifacts.get(kept, 9).await.unwrap(), "kept");
        assert_eq!(artifacts.get(gone, 9).await, Err(ArtifactError::Missing(gone.to_string())));
        assert_eq!(artifacts.note("vectors/a", 9).await, Ok(None));
    }

    #[test]
    fn names_and_urls_that_are_none_are_refused() {
        let id = ArtifactId::of(b"").to_string();
        for text in
            ["", "artifact:", &id[9..], &id[..id.len() - 1], &id.to_uppercase(), &format!("{id}0"), "artifact:é"]
        {
            assert!(text.parse::<ArtifactId>().is_err(), "{text}");
        }
        for url in ["", "folder", "file://host/folder", "ftp://host/x", "http://[::1"] {
            assert!(Artifacts::open(url).is_err(), "{url}");
        }
        let secret = Artifacts::open("s3://user:hunter2@bucket/x");
        assert!(!format!("{secret:?}").contains("hunter2"), "{secret:?}");
    }
}
