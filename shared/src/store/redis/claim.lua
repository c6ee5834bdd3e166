-- KEYS: each task's record.
-- ARGV: milliseconds to keep; then for each claim: worker, nonce, milliseconds of the lease, most attempts, attempts
--       that the envelope knows of, and what may run beside it: 0 others unless the last attempt was lost, 1 others, 2 nothing.
-- Answers for each: the attempt to run (from 1), 0 for a record that is unknown, -n when it is busy for n milliseconds,
-- { attempts } when it is exhausted, { attempts, 1 } when it is to be cancelled, { attempts, 2, worker } when it was lost
-- while it ran alone, { 0, 3 } when its last attempt was lost otherwise and others may run beside it, or its record when it
-- has ended.

local KEEP = ARGV[1]
local now, now_us = clock()
local answers = {}

for number, key in ipairs(KEYS) do
  local argument = number * 6 - 5
  local worker, nonce, lease_ms = ARGV[argument + 1], ARGV[argument + 2], tonumber(ARGV[argument + 3])
  local beside = ARGV[argument + 6]
  local record = record_at(key)
  local at = record and run_of(record)

  if not record then
    answers[number] = 0
  elseif byte(record, at) >= SUCCEEDED then
    answers[number] = record
  else
    local tries, held, holder, lease = attempt_of(record, at)
    if held > 0 and holder == nonce then
      record = marked(record, at, marks_but_alone(record, at) + (beside == '2' and ALONE or 0))
      write(key, sub(record, 1, at + 21) .. pack('<I8', now + lease_ms) .. sub(record, at + 30), at, KEEP)
      answers[number] = tries
    elseif held > 0 and lease > now then
      answers[number] = now - lease
    elseif held == 0 and holder == nonce then
      -- It has given the task back: this was under way for longer than the attempt took.
      answers[number] = -1
    elseif unwanted(record, at) then
      answers[number] = { tries, 1 }
    elseif held > 0 and is_alone(record, at) then
      local model, worker_bytes = unpack_of('<I2I2', record, at + 46)
      answers[number] = { tries, 2, sub(record, at + 50 + model, at + 49 + model + worker_bytes) }
    else
      tries = math.max(tries, tonumber(ARGV[argument + 5]))
      if tries >= tonumber(ARGV[argument + 4]) then
        answers[number] = { tries }
      elseif held > 0 and beside == '0' then
        answers[number] = { 0, 3 }
      else
        local marks = marks_but_alone(record, at) + (beside == '2' and ALONE or 0)
        local sent, model, old = unpack_of('<I8I2I2', record, at + 38)
        local run = pack('<BI4Bc16I8I8I8I2I2', RUNNING, tries + 1, 1 + marks, nonce, now + lease_ms, now_us, sent, model,
          #worker)
        write(key, sub(record, 1, at - 1) .. run .. sub(record, at + 50, at + 49 + model) .. worker
          .. sub(record, at + 50 + model + old), at, KEEP)
        answers[number] = tries + 1
      end
    end
  end
end
return answers
