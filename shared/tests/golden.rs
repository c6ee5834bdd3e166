//! Messages of released versions stay readable, and are written as they always were.

use taskyard_shared::{TaskResult, decode_tasks};

#[test]
fn a_task_of_version_1_is_read() {
    for task in decode_tasks(include_bytes!("golden/tasks.v1.json")).unwrap() {
        task.unwrap();
    }
}

#[test]
fn a_result_of_version_1_is_read_and_written_back_the_same() {
    let golden = include_str!("golden/result.v1.json");
    let result: TaskResult = serde_json::from_str(golden).unwrap();
    assert_eq!(serde_json::to_string(&result).unwrap(), golden.trim_end());
}
