// Runs one client per line of JSON on standard input: {id, client, base, fields}; answers {id, text, finish, error}.
// Packages are found from the working directory, target/node.

import { createInterface } from 'node:readline';
import { createGoogleGenerativeAI } from '@ai-sdk/google';
import { GoogleGenAI } from '@google/genai';
import { streamText } from 'ai';
import { createParser } from 'eventsource-parser';
import OpenAI from 'openai';

// The package is written for browsers; it uses these globals.
globalThis.window ??= { clearTimeout, setTimeout, fetch };
globalThis.document ??= { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = await import('@microsoft/fetch-event-source');

const PROMPT = 'Say some words.';
const MESSAGES = [{ role: 'user', content: PROMPT }];

const post = (base, fields) => ({
  method: 'POST',
  headers: { ...fields, 'Content-Type': 'application/json', Authorization: 'Bearer sk-1' },
  body: JSON.stringify({ model: 'demo', messages: MESSAGES, stream: true }),
});

// Adds one event of OpenAI's chat stream to the result.
function addChatEvent(seen, data) {
  if (data === '[DONE]') return;
  const part = JSON.parse(data);
  if (part.error) throw Object.assign(new Error(part.error.message), { name: 'StreamError' });
  const choice = part.choices?.[0];
  seen.text += choice?.delta?.content ?? '';
  seen.finish = choice?.finish_reason ?? seen.finish;
}

const clients = {
  async 'openai-node'(base, fields, seen) {
    const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: 'sk-1', maxRetries: 0, defaultHeaders: fields });
    for await (const part of await client.chat.completions.create({ model: 'demo', messages: MESSAGES, stream: true })) {
      for (const choice of part.choices ?? []) {
        seen.text += choice.delta?.content ?? '';
        seen.finish = choice.finish_reason ?? seen.finish;
      }
    }
  },

  async 'openai-node-responses'(base, fields, seen) {
    const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: 'sk-1', maxRetries: 0, defaultHeaders: fields });
    for await (const part of await client.responses.create({ model: 'demo', input: PROMPT, stream: true })) {
      if (part.type === 'response.output_text.delta') seen.text += part.delta;
      seen.finish = part.type;
    }
  },

  async 'google-genai-node'(base, fields, seen) {
    const client = new GoogleGenAI({ apiKey: 'k1', httpOptions: { baseUrl: base, headers: fields } });
    for await (const part of await client.models.generateContentStream({ model: 'demo', contents: PROMPT })) {
      seen.text += part.text ?? '';
      seen.finish = part.candidates?.[0]?.finishReason ?? seen.finish;
    }
  },

  async 'ai-sdk-google'(base, fields, seen) {
    const google = createGoogleGenerativeAI({ apiKey: 'k1', baseURL: `${base}/v1beta`, headers: fields });
    const result = streamText({ model: google('demo'), prompt: PROMPT, maxRetries: 0, onError() {} });
    for await (const part of result.fullStream) {
      if (part.type === 'text-delta') seen.text += part.text;
      if (part.type === 'error') throw part.error;
      if (part.type === 'finish') seen.finish = part.finishReason;
    }
  },

  // As in its README, each message is parsed as JSON.
  async 'fetch-event-source'(base, fields, seen) {
    await fetchEventSource(`${base}/v1/chat/completions`, {
      ...post(base, fields),
      fetch,
      openWhenHidden: true,
      async onopen(response) {
        if (!response.headers.get('content-type')?.startsWith('text/event-stream')) {
          throw new Error(`${response.status}: ${await response.text()}`);
        }
      },
      onmessage: (message) => addChatEvent(seen, message.data),
      // The library retries after every error that is not rethrown.
      onerror(error) {
        throw error;
      },
    });
  },

  async 'eventsource-parser'(base, fields, seen) {
    const response = await fetch(`${base}/v1/chat/completions`, post(base, fields));
    if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
    const parser = createParser({ onEvent: (event) => addChatEvent(seen, event.data) });
    for await (const piece of response.body.pipeThrough(new TextDecoderStream())) parser.feed(piece);
  },
};

async function answer({ id, client, base, fields }) {
  const seen = { id, text: '', finish: null, error: null };
  try {
    await clients[client](base, fields, seen);
  } catch (error) {
    seen.error = [error.name ?? 'Error', String(error.message ?? error)];
  }
  process.stdout.write(`${JSON.stringify(seen)}\n`);
}

createInterface({ input: process.stdin }).on('line', (line) => answer(JSON.parse(line)));
