// Records the microphone as samples, without a lossy format between.

export class Recorder {
  #blocks = [];

  // Asks for permission; throws what the browser says if there is none, or no microphone.
  static async start() {
    const recorder = new Recorder();
    const processing = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    recorder.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...processing } });
    recorder.context = new AudioContext();
    await recorder.context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
    const node = new AudioWorkletNode(recorder.context, "listener", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => recorder.#blocks.push(data);
    recorder.context.createMediaStreamSource(recorder.stream).connect(node);
    return recorder;
  }

  get seconds() {
    return this.#blocks.reduce((sum, block) => sum + block.length, 0) / this.context.sampleRate;
  }

  // Returns {samples, rate}.
  async stop() {
    this.stream.getTracks().forEach((track) => track.stop());
    const rate = this.context.sampleRate;
    await this.context.close();
    const samples = new Float32Array(this.#blocks.reduce((sum, block) => sum + block.length, 0));
    let at = 0;
    for (const block of this.#blocks) { samples.set(block, at); at += block.length; }
    return { samples, rate };
  }
}
