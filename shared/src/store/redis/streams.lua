-- KEYS: each task's record. ARGV: prefix of streams, prefix of their heads, most bytes; then for each task: the number after which
-- it is to be read, most parts.
-- Answers for each: false when there is no stream, or its head without nonce and counts (attempt, last number,
-- number of the progress, the progress), whether there is more, then number and bytes of each part.

local answers = {}

for number, key in ipairs(KEYS) do
  local after, most = ARGV[number * 2 + 2], tonumber(ARGV[number * 2 + 3])
  local head = redis.call('GET', ARGV[2] .. sub(key, -32))
  if head then
    local attempt = unpack_of('<I4', head)
    local last = unpack_of('<I8', head, 21)
    local marked_at = unpack_of('<I8', head, 38)
    local answer = { attempt, last, marked_at, sub(head, 46), 0 }
    if most > 0 then
      local stream = ARGV[1] .. sub(key, -32)
      local bytes = 0
      for _, entry in ipairs(redis.call('XRANGE', stream, '(' .. after .. '-0', '+', 'COUNT', most + 1)) do
        local body = entry[2][2]
        bytes = bytes + #body
        if #answer >= 5 + 2 * most or bytes > tonumber(ARGV[3]) and #answer > 5 then
          answer[5] = 1
          break
        end
        answer[#answer + 1] = tonumber(string.match(entry[1], '^%d+'))
        answer[#answer + 1] = body
      end
    end
    answers[number] = answer
  else
    answers[number] = false
  end
end
return answers
