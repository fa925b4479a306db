// openai-node: a stream that is left in the middle, and a request that is given up and repeated.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const asked = JSON.parse(readFileSync(0, "utf8"));
let attempts = 0;
const client = new OpenAI({
  baseURL: `${asked.url}/v1`,
  apiKey: asked.api_key,
  fetch: (url, options) => {
    attempts += 1;
    return fetch(url, options);
  },
});
const long = {
  model: "pirate",
  messages: [{ role: "user", content: asked.pirate }],
  max_tokens: asked.max_tokens,
  ignore_eos: true,
};

const stream = await client.chat.completions.create({ ...long, stream: true });
for await (const chunk of stream) if (chunk.choices[0]?.delta?.content) break;

attempts = 0;
const given_up = await client.chat.completions
  .create(long, { timeout: 500, maxRetries: 2 })
  .catch((error) => error.constructor.name);
console.log(JSON.stringify({ given_up, attempts }));
